"""TensorRT plans for a GPU that is not here.

TensorRT for RTX builds for a compute capability on any machine. The engine below does all that the engine on the card
does, encode texts, cut them into buckets, and ask for plans, but runs none: what a plan would write is zeros. So the
card finds the plans it asks for, and compares them with PyTorch before it uses them.
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
"""Of the card, if nothing else uses it: how many tokens a call takes depends on it."""


class _Nowhere(Queue):
    """Stands for the queue of a GPU that is not here."""

    handle = 0

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu

    @property
    def gpu(self) -> Gpu:
        return self._gpu

    def use(self) -> nullcontext[None]:  # type: ignore[override]
        return nullcontext()


class _Unloaded(Plan):
    """A plan's file."""

    def __init__(self, path: Path, scratch: Scratch) -> None:
        del scratch
        self.path = path

    def run(self, inputs: Mapping[str, Tensor], output: Tensor, stream: int) -> None:
        del inputs, stream
        output.zero_()

    def describe(self) -> str:
        return "not loaded"


class AheadEngine(TensorRtEngine):
    """Builds what the engine on a GPU would build. It answers nothing: all logits are zero."""

    precisions: ClassVar[dict[str, tuple[str, ...]]] = {"cpu": PRECISIONS}
    bucket_overhead: ClassVar[dict[str, int]] = {"cpu": BUCKET_TOKENS}
    plan_class: ClassVar[type[Plan]] = _Unloaded
    runs: ClassVar[bool] = False

    def __init__(self, staged: StagedModel, precision: str, gpu: Gpu) -> None:
        """Take a model cut into stages, and the GPU to build for."""
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
    """Return an engine whose plans for one candidate are built; ``prepare()`` builds those of a population.

    Args:
        model: on the CPU.
        gpu: what to build for.
        mode: "add" or "cat".
        n_prompt_tokens: n.
        cuts: "input" for BBT, "layers" for BBTv2.
        precision: fp16, bf16, fp32, or "auto" for the first.

    Raises:
        MissingExtraError: if TensorRT for RTX is not installed.
        UsageError: if plans in this precision are not offered.
        DeviceError: if a graph is refused.
    """
    precision = PRECISIONS[0] if precision == "auto" else precision
    if precision not in PRECISIONS:
        raise UsageError(
            f"TensorRT plans compute in {', '.join(PRECISIONS)}, not in {precision}. Give another --precision."
        )
    if preferred(gpu.capability) is not RTX:
        raise DeviceError(f"{RTX.title} does not build for {gpu.name}: build on the card itself, with --engine trt.")
    if not RTX.installed:
        raise MissingExtraError(
            f"plans for a GPU that is not here are built by {RTX.title}, which is not installed: `{RTX.install}`."
        )
    savings = Savings.on("cuda")
    staged = StagedModel(model, mode, n_prompt_tokens, cuts, answer_only=savings.answer_only)
    engine = AheadEngine(staged, precision, gpu)
    engine.check_parity()
    return engine
