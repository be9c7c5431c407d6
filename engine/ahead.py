"""Build TensorRT plans for a GPU of another machine.

TensorRT for RTX builds for a compute capability on any machine. The engine below encodes texts, makes buckets and
builds plans like the engine on the card, but runs none: all outputs are zero. The card then finds its plans in the
cache, and passes them through the parity gate before use.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..export.bindings import RTX, Gpu, preferred
from ..export.errors import DeviceError, MissingExtraError, UsageError
from ..export.model import Cuts, Encoded, StagedModel
from ..export.prompts import Mode
from .cuda import Queue
from .plans import Plan, Scratch
from .runner import Runner
from .savings import Savings
from .tensorrt import BUCKET_TOKENS, PRECISIONS, TensorRtEngine

MEMORY_BYTES = 24 << 30
"""The assumed memory of the card; it limits the tokens per call."""


class _Nowhere(Queue):
    """Stands in for the queue of a GPU of another machine."""

    handle = 0

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu

    @property
    def gpu(self) -> Gpu:
        return self._gpu

    def use(self) -> nullcontext[None]:  # type: ignore[override]
        return nullcontext()


class _Unloaded(Plan):
    """A plan that is built but not loaded."""

    def __init__(self, path: Path, scratch: Scratch) -> None:
        del scratch
        self.path = path

    def run(self, inputs: Mapping[str, Tensor], output: Tensor, stream: int) -> None:
        del inputs, stream
        output.zero_()

    def describe(self) -> str:
        return "not loaded"


class AheadEngine(TensorRtEngine):
    """Builds the plans of a GPU's engine without running them: all logits are zero."""

    precisions: ClassVar[dict[str, tuple[str, ...]]] = {"cpu": PRECISIONS}
    bucket_overhead: ClassVar[dict[str, int]] = {"cpu": BUCKET_TOKENS}
    plan_class: ClassVar[type[Plan]] = _Unloaded
    runs: ClassVar[bool] = False

    def __init__(self, staged: StagedModel, precision: str, gpu: Gpu) -> None:
        """Take a staged model and the GPU to build for."""
        self._gpu = gpu
        super().__init__(staged, precision, torch.device("cpu"), Savings.on("cuda", without=("graph",)))

    def _new_queue(self) -> Queue:
        return _Nowhere(self._gpu)

    def _gated(self, encoded: Encoded) -> Runner:
        return self._load(encoded)

    def _tokens_per_call(self) -> int:
        return self._tokens_within(MEMORY_BYTES)


def load_ahead(
    model: PreTrainedModel, gpu: Gpu, *, mode: Mode, n_prompt_tokens: int, cuts: Cuts, precision: str = "auto"
) -> AheadEngine:
    """Return an engine with built plans for one candidate; ``prepare()`` builds those for a population.

    Args:
        model: on the CPU.
        gpu: the target.
        mode: "add" or "cat".
        n_prompt_tokens: n.
        cuts: "input" for BBT, "layers" for BBTv2.
        precision: fp16, bf16, fp32, or "auto" for the first.

    Raises:
        MissingExtraError: if TensorRT for RTX is not installed.
        UsageError: if plans do not support this precision.
        DeviceError: if a plan cannot be built.
    """
    precision = PRECISIONS[0] if precision == "auto" else precision
    if precision not in PRECISIONS:
        raise UsageError(
            f"precision is {precision}, but TensorRT plans compute in {', '.join(PRECISIONS)}. Give one of these with "
            "--precision."
        )
    if preferred(gpu.capability) is not RTX:
        raise DeviceError(f"{RTX.title} does not support {gpu.name}. Build on the card itself, with --engine trt.")
    if not RTX.installed:
        raise MissingExtraError(
            f"building plans for a GPU of another machine needs {RTX.title}, which is not installed: `{RTX.install}`."
        )
    engine = AheadEngine(StagedModel(model, mode, n_prompt_tokens, cuts), precision, gpu)
    engine.check_parity()
    return engine
