"""The PyTorch engine. It runs everywhere."""

from __future__ import annotations

import copy
import logging
from inspect import signature
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from ..export.fp8 import with_fp8_products
from ..export.model import Encoded, StagedModel
from ..export.prefix import PrefixStage
from .base import Engine
from .cuda import Queue
from .fused import FusedRunner, compile_layers, merge_gelus, merge_products
from .reference import ModuleRunner
from .replay import Replay
from .runner import Runner
from .savings import Savings

FP8_FROM = (8, 9)
"""The least compute capability with fp8 products."""

logger = logging.getLogger(__name__)


def varlen_fault(dtype: torch.dtype, device: torch.device) -> str | None:
    """Return why PyTorch's kernel for packed texts cannot run here, or None if it can."""
    if dtype not in (torch.float16, torch.bfloat16):
        return f"attention on packed texts does not support {str(dtype).removeprefix('torch.')}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return f"attention on packed texts needs an Ampere GPU or later, not {torch.cuda.get_device_name(device)}"
    if "window_size" not in signature(varlen_attn).parameters:
        return f"attention on packed texts needs a later PyTorch than {torch.__version__}"
    return None


class FastRunner(ModuleRunner):
    """Runs stages with fp16 accumulation in matrix products, which is twice as fast as fp32 on GeForce cards."""

    def __call__(self, stage: int, hidden: Tensor, prompt: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        """Join the prompt and run a stage; PyTorch's global setting is restored afterwards."""
        usual = torch.backends.cuda.matmul.allow_fp16_accumulation
        torch.backends.cuda.matmul.allow_fp16_accumulation = True
        try:
            return super().__call__(stage, hidden, prompt, tensors)
        finally:
            torch.backends.cuda.matmul.allow_fp16_accumulation = usual


class TorchEngine(Engine):
    """PyTorch with SDPA attention."""

    name = "torch"
    shares_prefix = True
    packing_kernels: ClassVar[dict[str, str]] = {"cpu": "padded", "cuda": "varlen"}
    precisions: ClassVar[dict[str, tuple[str, ...]]] = {
        "cpu": ("fp32", "bf16", "fp16", "fp8"),
        "cuda": ("fp16", "bf16", "fp32", "fp16-fast", "fp8"),
    }

    def __init__(self, staged: StagedModel, precision: str, device: torch.device, savings: Savings) -> None:
        """Take a staged model; load_engine() validates the other arguments."""
        super().__init__(staged, precision, device, savings)
        if savings.graph and device.type == "cuda":
            queue = Queue(device)
            self.replay = Replay(queue, str(queue.gpu))

    @classmethod
    def precision_fault(cls, precision: str, device: torch.device) -> str | None:
        """Return why PyTorch cannot compute in a precision on this hardware, or None if it can."""
        if precision == "fp8" and device.type == "cuda" and torch.cuda.get_device_capability(device) < FP8_FROM:
            return (
                f"fp8 products need compute capability 8.9 or later, and {torch.cuda.get_device_name(device)} has less"
            )
        return None

    def _load(self, encoded: Encoded) -> Runner:
        stages = encoded.stages
        own = self.dtype is torch.float32 and self.device == encoded.hidden.device
        if not own or self.savings.fusion:
            stages = tuple(stage.to(self.device, self.dtype) for stage in copy.deepcopy(stages))
        runner = FastRunner(stages) if self.precision == "fp16-fast" else FusedRunner(stages)
        if self.savings.fusion and not isinstance(stages[0], PrefixStage):
            merge_products(stages, lambda: self._example(runner, encoded))
            if self.precision != "fp8":
                merge_gelus(stages, lambda: self._example(runner, encoded))
        if self.precision == "fp8":
            for stage in stages:
                for layers in filter(None, (stage.layers, stage.decoder)):
                    with_fp8_products(layers.stack)
        if self.savings.fusion and not isinstance(stages[0], PrefixStage):
            compile_layers(stages)
        return runner

    def _example(self, runner: ModuleRunner, encoded: Encoded) -> None:
        """Run an example through the stages, with one candidate whose prompt is zero."""
        placed = self._placed(encoded)
        hidden, tensors = placed.hidden, placed.tensors_for(1)
        for number, stage in enumerate(encoded.stages):
            width = stage.prompt_width(self.hidden_size)
            prompt = hidden.new_zeros(1, stage.join.n_prompt_tokens, width)
            hidden = runner(number, hidden, prompt, tensors)

    def _gated(self, encoded: Encoded) -> Runner:
        reference = self.dtype is torch.float32 and not (self.packs or self.savings.fusion)
        return self._load(encoded) if reference else super()._gated(encoded)

    def packing_kernel(self) -> str | None:
        """Return the attention kernel for packed texts, or None if this engine cannot pack."""
        if self.device.type == "cuda" and (fault := varlen_fault(self.dtype, self.device)):
            logger.info("texts are padded: %s", fault)
            return None
        return super().packing_kernel()
