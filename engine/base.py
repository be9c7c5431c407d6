"""The base class of engines: encodes examples in length buckets or packed, and runs the parity gate."""

from __future__ import annotations

import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from ..export.cache import code_digest, read_record, write_record
from ..export.errors import DeviceError, ParityError
from ..export.examples import Examples
from ..export.families import Family
from ..export.model import Encoded, StagedModel
from ..export.parity import Parity, probe_examples
from ..export.precision import precision_of
from ..export.prompts import Mode
from ..export.stages import Stage
from .buckets import Bucket, bucket_rows, pack_rows
from .crew import Crew
from .embeddings import LocalEmbeddings
from .faults import is_out_of_memory
from .gate import measure, placed, probe
from .replay import Replay
from .runner import Runner
from .savings import Savings
from .session import Session

logger = logging.getLogger(__name__)


class Engine(ABC):
    """A model on one runtime and device, in one precision.

    A subclass implements ``_load`` and sets the class attributes.
    """

    name: ClassVar[str]
    holds_model: ClassVar[bool] = True
    """Whether the model is in this process, so that its memory can be measured."""
    precisions: ClassVar[dict[str, tuple[str, ...]]]
    """The supported precisions, by device type; "auto" takes the first that suits the hardware."""
    tensor_dtypes: ClassVar[dict[str, torch.dtype]] = {}
    """The dtype of hidden states and prompts, for precisions that the runtime converts to internally."""
    bucket_overhead: ClassVar[dict[str, int]] = {"cpu": 0, "cuda": 512}
    """The cost of one more length bucket, in tokens, by device type."""
    length_step: ClassVar[dict[str, int]] = {}
    """The length of a bucket with padding must be a multiple of this for a fast kernel, by device type."""
    one_thread_calls: ClassVar[bool] = False
    """Whether a call uses one CPU thread, so that calls run in parallel; else each call uses all threads."""
    cpu_tokens: ClassVar[int] = 2048
    """Tokens per call on a CPU, so that a layer's widest activations (4 H per token) fit into the cache."""
    packing_kernels: ClassVar[dict[str, str]] = {}
    """The row of KERNELS for packed texts, by device type."""
    shares_prefix: ClassVar[bool] = False
    """Whether the engine can run prefix stages, which return no logits."""

    def __init__(self, staged: StagedModel, precision: str, device: torch.device, savings: Savings) -> None:
        """Take a staged model; load_engine() validates the other arguments."""
        self.staged = staged
        self.mode: Mode = staged.mode
        self.cuts: str = staged.cuts
        self.family: Family = staged.family
        self.n_prompt_tokens, self.n_layers, self.hidden_size = (
            staged.n_prompt_tokens, staged.n_layers, staged.hidden_size
        )  # fmt: skip
        self.savings = savings
        self.precision = precision
        self.device = device
        self.runs_on, self.place = device.type, str(device)
        """The type of the device, "cpu" or "cuda", and the device as text, for results."""
        self.dtype = self.tensor_dtypes.get(precision, precision_of(precision).dtype)
        self.parity: dict[str, float] = {}
        """The parity gate's figures; empty for the reference itself."""
        self.onnx_model_path: Path | None = None
        """A file or folder of graphs that replaces the cache's."""
        self.export_seconds = 0.0
        """Seconds spent on exports and parity gates."""
        self.tokens_per_call = self._tokens_per_call()
        self.crew = Crew(torch.get_num_threads() if self.one_thread_calls and device.type == "cpu" else 1)
        """The threads for parallel calls."""
        self.packs = savings.packing
        """Whether to pack texts; a failure with packed texts switches it off."""
        self.replay: Replay | None = None
        """Records and replays generations, if the engine supports it and the saving is on."""
        self._runners: dict[tuple[Stage, ...], Runner] = {}

    @classmethod
    def cuda_fault(cls) -> str | None:
        """Return why this engine cannot run on a CUDA device that PyTorch sees, or None if it can."""
        return None

    @classmethod
    def precision_fault(cls, precision: str, device: torch.device) -> str | None:
        """Return why this engine cannot compute in one of its precisions on this hardware, or None if it can."""
        del precision, device
        return None

    def close(self) -> None:
        """Release external resources; engines in this process have none."""
        return

    @property
    def artifacts(self) -> tuple[Path, ...]:
        """The files that this engine runs, in order; none for PyTorch."""
        return tuple(path for runner in self._runners.values() for path in runner.artifacts)

    @property
    def word_embeddings(self) -> Tensor:
        """[V, E]: the model's word embeddings."""
        return self.staged.word_embeddings

    @property
    def embeddings(self) -> LocalEmbeddings:
        """The word embeddings as a search reads them."""
        return LocalEmbeddings(self.word_embeddings)

    def open(self, examples: Examples) -> Session:
        """Encode examples once and keep them on the device.

        Raises:
            ShapeError: if the model cannot take them.
            ParityError: if a newly built graph fails the parity gate.
        """
        self.staged.check(examples)
        columns, classes, bias = None, examples.words_of_classes, examples.label_bias
        if bias is not None:
            bias = bias.to(self.device)
        if not self.savings.label_head:
            columns = examples.label_token_ids.to(self.device)
            every = torch.arange(len(self.word_embeddings))
            examples = replace(examples, label_token_ids=every, label_classes=None, label_bias=None)
        most = self.tokens_per_call
        if self.crew.size > 1:
            most = min(most, int(examples.lengths.sum()) // self.crew.size)
        most = max(most, int(examples.lengths.max()))
        buckets = self._packed(examples, most) if self.packs else []
        if not buckets:
            rows = [torch.arange(len(examples))]
            if self.savings.buckets:
                rows = bucket_rows(examples.lengths.cpu(), self.bucket_overhead[self.device.type], most)
            buckets = self._buckets(rows, examples)
        return Session(self, buckets, classes, bias, columns)

    def packing_kernel(self) -> str | None:
        """Return the attention kernel for packed texts, or None if this engine cannot pack."""
        return None if self.onnx_model_path else self.packing_kernels.get(self.device.type)

    def prepare(self, examples: Examples, population: int) -> None:
        """Build and check every artifact of a search with this many candidates on these examples."""
        session = self.open(examples)
        shape = (population, self.n_prompt_tokens, self.hidden_size)
        prompts = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * float(self.word_embeddings.std())
        for layer in range(self.staged.n_stages):
            session.evaluate(prompts, layer)

    def run_chain(
        self, run: Runner, first: int, hidden: Tensor, prompts: Sequence[Tensor], tensors: dict[str, Tensor]
    ) -> Tensor:
        """Run consecutive stages from ``first``, one per prompt; the other arguments are those of ``Runner``."""
        if self.replay is None:
            return self._chain(run, first, hidden, prompts, tensors)
        return self.replay.run(self._chain, run, first, hidden, prompts, tensors, self._fixed())

    def _chain(
        self, run: Runner, first: int, hidden: Tensor, prompts: Sequence[Tensor], tensors: dict[str, Tensor]
    ) -> Tensor:
        return run.chain(first, hidden, prompts, tensors)

    def _fixed(self) -> tuple[int, ...]:
        """Return the addresses of memory that runners use besides their arguments."""
        return ()

    def check_parity(self) -> None:
        """Build the usual graphs and run the parity gate on them, so that a failure comes early."""
        self.open(probe_examples(self.staged))

    def _packed(self, examples: Examples, most: int) -> list[Bucket]:
        """Encode packed examples and load their runners; an empty list if they cannot be packed."""
        kernel = self.packing_kernel()
        if kernel is None or len(examples) == 1:
            return []
        rows = pack_rows(examples.lengths.cpu(), most)
        try:
            encoded = [
                self.staged.encode(examples.select(some), share_prefix=self._shares(examples), kernel=kernel)
                for some in rows
            ]
            if any(one.row is None for one in encoded):
                self.packs = False
                logger.info(
                    "%s: texts are padded, because attention of %s cannot run on packed ones",
                    self.name,
                    self.family.name,
                )
                return []
            buckets = [self._bucket(some, one) for some, one in zip(rows, encoded, strict=True)]
        except (RuntimeError, DeviceError, ParityError) as error:
            if is_out_of_memory(error):
                raise
            self.packs = False
            logger.warning("packed texts fail on %s: continuing with padded ones (%s)", self.device, error)
            return []
        logger.info("%s: %d texts are packed, and attention runs on kernel %s", self.name, len(examples), kernel)
        return buckets

    def _shares(self, examples: Examples) -> bool:
        """Return whether the prompt of these texts runs once for all of them."""
        shares = self.savings.prefix and self.shares_prefix and self.onnx_model_path is None
        return shares and self.staged.shares_prefix(examples)

    def _buckets(self, rows: Sequence[Tensor], examples: Examples) -> list[Bucket]:
        """Encode buckets of examples and load their runners."""
        share = self._shares(examples)
        texts = [self._stepped(examples.select(some)) for some in rows]
        encoded = [self.staged.encode(some, share_prefix=share) for some in texts]
        if share and any(one.prefix is None for one in encoded):
            encoded = [self.staged.encode(some) for some in texts]
        return [self._bucket(some, one) for some, one in zip(rows, encoded, strict=True)]

    def _stepped(self, examples: Examples) -> Examples:
        """Pad a bucket to a multiple of ``length_step``, if it has padding and the model has enough positions.

        A user's graph takes a mask where buckets may be padded, so every bucket then gets padding.
        """
        length = self.staged.before + examples.input_ids.shape[1]
        step = self.length_step.get(self.device.type, 1)
        missing = -length % step
        if self.family.kind != "decoder" and bool(examples.attention_mask.all()):
            asked = self.onnx_model_path is not None and self.bucket_overhead[self.device.type]
            missing = (missing or step) if asked else 0
        return examples.padded(missing) if missing and self.staged.reaches(length + missing) else examples

    def _bucket(self, rows: Tensor, encoded: Encoded) -> Bucket:
        if encoded.stages not in self._runners:
            began = time.perf_counter()
            if encoded.prefix is not None:
                self._runners[encoded.prefix.stages] = self._load(encoded.prefix)
            self._runners[encoded.stages] = self._gated(encoded)
            self.export_seconds += time.perf_counter() - began
        return Bucket(
            rows.to(self.device), self._placed(encoded), self._runners[encoded.stages], self._prefix_runner(encoded)
        )

    def _prefix_runner(self, encoded: Encoded) -> Runner | None:
        return None if encoded.prefix is None else self._runners[encoded.prefix.stages]

    @abstractmethod
    def _load(self, encoded: Encoded) -> Runner:
        """Return the runner for a stage chain.

        Args:
            encoded: an example of its inputs, fp32 on the model's device.
        """

    def _parity_record(self, runner: Runner) -> Path | None:
        """Return the file for a runner's parity figures on this device, or None if it runs no files."""
        del runner
        return None

    def _gated(self, encoded: Encoded) -> Runner:
        """Load a runner and compare it with PyTorch fp32, unless its files have passed the gate here before."""
        runner = self._load(encoded)
        self.accept(self._parity_record(runner), lambda: self._measure(runner, encoded))
        return runner

    def accept(self, record: Path | None, measure: Callable[[], Parity], part: str = "") -> None:
        """Check the parity figures in a record, or measure and record them, and keep the worst of all graphs.

        A record of other engine code is measured again.

        Args:
            record: the file for the figures, if there is one.
            measure: compares the graph with PyTorch.
            part: the name of the graph's part, if it is one.

        Raises:
            ParityError: if they do not meet the precision's thresholds.
        """
        part = part and f", {part},"
        code = code_digest(Path(__file__).parent)
        kept = {} if record is None else read_record(record) or {}
        parity = Parity.from_dict(kept.get("figures")) if kept.get("code") == code else None
        if parity is None:
            parity = measure()
            logger.info("parity of %s %s%s with PyTorch fp32: %s", self.name, self.precision, part, parity)
        parity.require(precision_of(self.precision), f"{self.name} in {self.precision} on {self.device}{part}")
        if record is not None:
            write_record(record, {"code": code, "figures": parity.as_dict()})
        if parity.spearman < self.parity.get("spearman", math.inf):
            self.parity = parity.as_dict()

    def _measure(self, runner: Runner, encoded: Encoded) -> Parity:
        """Compare a runner with PyTorch at the first and the last cut; return the worse figures."""
        ours = self._placed(encoded), runner, self._prefix_runner(encoded)
        return measure(self.staged, encoded, precision_of(self.precision), self.device, partial(probe, *ours))

    def _placed(self, encoded: Encoded) -> Encoded:
        """Move the stages' inputs to the device, in the engine's dtype."""
        return placed(encoded, self.device, self.dtype)

    def _tokens_per_call(self) -> int:
        """Return the maximum number of tokens per call.

        On a GPU about 24 H values per token are alive at a time, and they may take half of the free memory. The widest
        activation, 4 H per token, must fit the 32-bit indices of many kernels.
        """
        if self.device.type != "cuda":
            return self.cpu_tokens
        return self._tokens_within(torch.cuda.mem_get_info(self.device)[0])

    def _tokens_within(self, free: int) -> int:
        """Return the maximum number of tokens per call on a GPU with this many free bytes."""
        held = free // 2 // (24 * self.hidden_size * self.dtype.itemsize)
        return max(2048, min(held, torch.iinfo(torch.int32).max // (4 * self.hidden_size)))
