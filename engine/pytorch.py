"""The PyTorch engine: the stages as they are. The reference, and what runs everywhere."""

from __future__ import annotations

import copy
import logging
from inspect import signature
from typing import ClassVar

import torch
from torch.nn.attention.varlen import varlen_attn

from ..export.model import Encoded
from ..export.prefix import PrefixStage
from .base import Engine
from .fused import compile_layers, merge_products
from .reference import ModuleRunner
from .session import Runner

logger = logging.getLogger(__name__)


def varlen_fault(dtype: torch.dtype, device: torch.device) -> str | None:
    """Say why PyTorch's kernel for texts of different lengths cannot run here, or None if it can."""
    if dtype not in (torch.float16, torch.bfloat16):
        return f"attention by the lengths of texts does not run in {str(dtype).removeprefix('torch.')}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return (
            f"attention by the lengths of texts needs an Ampere GPU or later, not {torch.cuda.get_device_name(device)}"
        )
    if "window_size" not in signature(varlen_attn).parameters:
        return f"attention by the lengths of texts needs a later PyTorch; this is {torch.__version__}"
    return None


class TorchEngine(Engine):
    """PyTorch with SDPA attention."""

    name = "torch"
    shares_prefix = True
    packing_kernels: ClassVar[dict[str, str]] = {"cpu": "padded", "cuda": "varlen"}
    precisions: ClassVar[dict[str, tuple[str, ...]]] = {
        "cpu": ("fp32", "bf16", "fp16"),
        "cuda": ("fp16", "bf16", "fp32"),
    }

    def _load(self, encoded: Encoded) -> Runner:
        stages = encoded.stages
        own = self.dtype is torch.float32 and self.device == encoded.hidden.device
        if not own or self.savings.fusion:
            stages = tuple(stage.to(self.device, self.dtype) for stage in copy.deepcopy(stages))
        runner = ModuleRunner(stages)
        if self.savings.fusion and not isinstance(stages[0], PrefixStage):
            merge_products(stages, lambda: self._example(runner, encoded))
            compile_layers(stages)
        return runner

    def _example(self, runner: ModuleRunner, encoded: Encoded) -> None:
        """Run an example through stages, one candidate with a prompt of zeros."""
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
        """Return what attention runs on where texts stand in a row, or None if they cannot here."""
        if self.device.type == "cuda" and (fault := varlen_fault(self.dtype, self.device)):
            logger.info("texts are padded: %s", fault)
            return None
        return super().packing_kernel()
