"""The TensorRT engine: runs stages as plans, built for the shapes of a run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from tqdm import tqdm

from ..export.bindings import choose
from ..export.cache import digest, file_digest, write_record
from ..export.errors import DeviceError, ParityError
from ..export.model import Encoded, StagedModel
from ..export.parity import Parity
from ..export.stages import Stage
from ..export.tensorrt import LENGTHS, Profile, discard, plan_from_onnx, tensorrt_fault, tensorrt_version
from .base import Engine
from .cuda import Queue
from .onnx_files import onnx_files
from .onnx_runner import OnnxRunner
from .padding import padding_lengths
from .plans import Plan, Scratch, plan_fault
from .profiles import EXAMPLES, exact_profile, range_profile
from .replay import Replay
from .runner import Runner
from .savings import Savings
from .stage_parity import measure_stage

PRECISIONS = ("fp16", "bf16", "fp32")
"""The precisions of plans; the first is the default."""
BUCKET_TOKENS = 2048
"""The cost of one more bucket, in tokens: four times that of other engines, because each bucket needs its own plans."""
PlanKey = tuple[int, str]
"""A stage, and the shapes of its inputs."""

logger = logging.getLogger(__name__)


class TensorRtRunner(OnnxRunner):
    """Runs a stage chain with plans: one per stage for a single candidate, one per stage and shapes for populations.

    Attention uses the lengths of texts instead of masks, if masks hide only padding. If a plan with lengths cannot be
    built, fails or fails the parity gate, the chain uses masks from then on, also in later runs.
    """

    def __init__(self, engine: TensorRtEngine, encoded: Encoded) -> None:
        """Build and load the plans for one candidate; those for a population are built at its first call."""
        files = onnx_files(engine.staged, encoded, engine.dtype, engine.onnx_model_path)
        super().__init__(files, engine.staged, encoded)
        self._engine = engine
        self._plans: dict[PlanKey, Plan] = {}
        self._lengths: Tensor | None = None
        """The lengths of the current texts, if attention uses them."""
        self._refusal = files.paths[0].with_name(f"no-lengths-{tensorrt_version()}-{engine.queue.gpu}.json")
        """The file that records a failure with lengths for these graphs and this GPU."""
        if files.kept and self._refusal.exists():
            engine.masked.add(self._stages)
        self._range_plans(encoded)

    @property
    def artifacts(self) -> tuple[Path, ...]:
        """The loaded plans, those for one candidate first."""
        return tuple(plan.path for plan in self._plans.values())

    @property
    def parity_record(self) -> Path:
        """The file for the parity figures of one candidate's plans, named by their content: each build differs."""
        plans = self.artifacts[: self._staged.n_stages]
        return plans[0].with_name(f"parity-{digest({'plans': [file_digest(plan) for plan in plans]})}.json")

    def __call__(self, stage: int, hidden: Tensor, prompt: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        """Run a stage; if the shapes are new, first build a plan and run the parity gate on it."""
        with self._engine.queue.use():
            self._lengths = tensors.get(LENGTHS) if self._by_lengths else None
            while not self._prepared(stage, hidden, prompt, tensors):
                self._lengths = None
            return super().__call__(stage, hidden, prompt, tensors)

    def refuse_lengths(self, error: Exception) -> bool:
        """Use masks from now on, unless this chain already does or memory was short; return whether to retry."""
        if self._lengths is None or "out of memory" in str(error):
            return False
        logger.warning("attention by lengths fails on %s: continuing with masks (%s)", self._engine.queue.gpu, error)
        self._engine.masked.add(self._stages)
        if self.files.kept:
            write_record(self._refusal, {"error": str(error)})
        return True

    def _infer(self, stage: int, inputs: dict[str, Tensor], output: Tensor) -> None:
        inputs = self._with_lengths(inputs)
        plan = self._plans[self._key(stage, inputs)]
        stream = self._engine.queue.handle
        if len(output) > 1:
            plan.run(inputs, output, stream)
            return
        axes = self._stages[stage].axes | {LENGTHS: ("examples",)}
        for begin in range(0, output.shape[1], EXAMPLES):
            rows = slice(begin, begin + EXAMPLES)
            some = {
                name: tensor[rows] if axes.get(name, ())[:1] == ("examples",) else tensor
                for name, tensor in inputs.items()
            }
            some["hidden"] = inputs["hidden"][:, rows]
            plan.run(some, output[:, rows], stream)

    def _prepared(self, stage: int, hidden: Tensor, prompt: Tensor, tensors: dict[str, Tensor]) -> bool:
        """Ensure a plan for these shapes that has passed the gate; return False to retry without lengths."""
        names = self._stages[stage].names
        inputs = self._with_lengths({"hidden": hidden, "prompt": prompt} | {name: tensors[name] for name in names})
        key = self._key(stage, inputs)
        if key in self._plans:
            return True
        try:
            record = self._load(stage, inputs).path.with_name("parity.json")
            if not self._engine.runs:
                return True
            run = super().__call__
            self._engine.accept(
                record,
                lambda: measure_stage(self._staged, self._stages, run, stage, hidden, prompt, tensors),
                f"stage {stage} for shapes {list(hidden.shape)} and {list(prompt.shape)}",
            )
        except (ParityError, DeviceError) as error:
            self._plans.pop(key, None)
            if not self.refuse_lengths(error):
                raise
            return False
        return True

    def _range_plans(self, encoded: Encoded) -> None:
        """Load a plan per stage for one candidate; the gate for whole chains follows later."""
        self._lengths = padding_lengths(encoded) if self._by_lengths else None
        examples, text = encoded.hidden.shape[1:3]
        width, stages = self._staged.hidden_size, range(self._staged.n_stages)
        try:
            for stage in tqdm(stages, desc="TensorRT plans", unit="plan", disable=None, leave=False):
                length = text if stage == 0 else self._staged.join(0).length(text)
                hidden = torch.empty(1, examples, length, width, device="meta")
                prompt = torch.empty(1, self._staged.n_prompt_tokens, width, device="meta")
                names = self._stages[stage].names
                inputs = {"hidden": hidden, "prompt": prompt} | {name: encoded.tensors[name] for name in names}
                with self._engine.queue.use():
                    self._load(stage, self._with_lengths(inputs))
        except DeviceError as error:
            if not self.refuse_lengths(error):
                raise
            self._plans.clear()
            self._range_plans(encoded)

    @property
    def _by_lengths(self) -> bool:
        """Whether lengths have not failed for this chain."""
        return self._stages not in self._engine.masked

    def _with_lengths(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add the lengths, repeated over the population, if attention uses them."""
        if self._lengths is None:
            return inputs
        return inputs | {LENGTHS: self._lengths.repeat(max(len(inputs["hidden"]), len(inputs["prompt"])))}

    def _profile(self, stage: int, inputs: dict[str, Tensor]) -> Profile:
        if max(len(inputs["hidden"]), len(inputs["prompt"])) > 1:
            return exact_profile(inputs)
        return range_profile(self._stages[stage], self._staged.join(stage), inputs)

    def _key(self, stage: int, inputs: dict[str, Tensor]) -> PlanKey:
        return stage, str(self._profile(stage, inputs))

    def _load(self, stage: int, inputs: dict[str, Tensor]) -> Plan:
        """Load the plan of a stage for the shapes of its inputs; build it if it is missing."""
        source = self.files.paths[stage], self._profile(stage, inputs), self._engine.queue.gpu
        path = plan_from_onnx(*source)
        if self._engine.runs and (fault := plan_fault(path)) is not None:
            logger.warning("%s cannot run here (%s): rebuilding it", path, fault)
            discard(path)
            path = plan_from_onnx(*source)
        plan = self._engine.plan_class(path, self._engine.scratch)
        logger.debug("%s:\n%s", plan.path, plan.describe())
        self._plans[self._key(stage, inputs)] = plan
        return plan


class TensorRtEngine(Engine):
    """TensorRT on CUDA."""

    name = "trt"
    precisions: ClassVar[dict[str, tuple[str, ...]]] = {"cuda": PRECISIONS}
    bucket_overhead: ClassVar[dict[str, int]] = {"cuda": BUCKET_TOKENS}
    plan_class: ClassVar[type[Plan]] = Plan
    runs: ClassVar[bool] = True
    """Whether plans run here, so that the parity gate applies."""

    def __init__(self, staged: StagedModel, precision: str, device: torch.device, savings: Savings) -> None:
        """Take a staged model; load_engine() validates the other arguments."""
        super().__init__(staged, precision, device, savings)
        self.queue = self._new_queue()
        choose(self.queue.gpu.capability)
        self.scratch = Scratch(device)
        if savings.graph:
            self.replay = Replay(self.queue, str(self.queue.gpu))
        self.masked: set[tuple[Stage, ...]] = set()
        """The chains whose attention uses masks because lengths have failed."""
        self._loaded: TensorRtRunner | None = None

    def _new_queue(self) -> Queue:
        return Queue(self.device)

    @classmethod
    def cuda_fault(cls) -> str | None:
        """Return why TensorRT cannot be used here, or None if it can."""
        return tensorrt_fault(torch.cuda.get_device_capability())

    def run_chain(
        self, run: Runner, first: int, hidden: Tensor, prompts: Sequence[Tensor], tensors: dict[str, Tensor]
    ) -> Tensor:
        """Run consecutive stages without waiting for the device in between."""
        with self.queue.use():
            return super().run_chain(run, first, hidden, prompts, tensors)

    def _fixed(self) -> tuple[int, ...]:
        """Return the address of the plans' scratch memory, which moves when it grows."""
        return (self.scratch.block.data_ptr(),)

    def _load(self, encoded: Encoded) -> TensorRtRunner:
        self._loaded = TensorRtRunner(self, encoded)
        return self._loaded

    def _placed(self, encoded: Encoded) -> Encoded:
        """Add the texts' lengths, if they can replace the masks."""
        placed, lengths = super()._placed(encoded), padding_lengths(encoded)
        if lengths is None:
            return placed
        return replace(placed, tensors=placed.tensors | {LENGTHS: lengths.to(self.device)})

    def _parity_record(self, runner: Runner) -> Path | None:
        assert isinstance(runner, TensorRtRunner)
        return runner.parity_record

    def _gated(self, encoded: Encoded) -> Runner:
        try:
            return super()._gated(encoded)
        except ParityError as error:
            if self._loaded is None or not self._loaded.refuse_lengths(error):
                raise
            return super()._gated(encoded)

    def _measure(self, runner: Runner, encoded: Encoded) -> Parity:
        """Compare the plans for one candidate; each other plan is compared when it is built."""
        return super()._measure(_OneByOne(runner), encoded)


class _OneByOne(Runner):
    """Passes the candidates of a population to another runner one by one."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def __call__(self, stage: int, hidden: Tensor, prompt: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        return torch.cat(
            [
                self._runner(stage, _one(hidden, candidate), _one(prompt, candidate), tensors)
                for candidate in range(max(len(hidden), len(prompt)))
            ]
        )


def _one(population: Tensor, candidate: int) -> Tensor:
    return population if len(population) == 1 else population[candidate : candidate + 1]
