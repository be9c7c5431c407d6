"""Matrix products in float8_e4m3fn: weights are quantized once per output row, inputs per row at each call.

Each row has its own scale, so its result depends on that row only. All other operations keep their dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

FP8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FP8).max
LEAST_SCALE = 1e-12
"""Avoids a division by zero for rows of zeros."""


def quantized(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize rows to fp8; values times scales approximate the rows.

    Args:
        rows: [N, K]. For a row with NaN or infinity, all results are NaN.

    Returns:
        [N, K] in float8_e4m3fn and [N, 1] in float32.
    """
    wide = rows.float()
    scale = (wide.abs().amax(dim=1, keepdim=True) / LARGEST).clamp(min=LEAST_SCALE)
    return (wide / scale).clamp(-LARGEST, LARGEST).to(FP8), scale


class Fp8Linear(nn.Module):
    """A linear layer with an fp8 product: fp8 kernels on CUDA, an fp32 emulation elsewhere.

    Move the model to its device and dtype first: a later dtype change would also cast the quantized weights.
    """

    rows: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """Quantize a weight [out, in]."""
        super().__init__()
        rows, scale = quantized(weight.detach())
        self.register_buffer("rows", rows)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def forward(self, states: Tensor) -> Tensor:
        """Map [..., in] to [..., out] in the dtype of the states."""
        rows, scale = quantized(states.reshape(-1, states.shape[-1]))
        if states.is_cuda:
            product = torch._scaled_mm(
                rows, self.rows.t(), scale_a=scale, scale_b=self.scale.t(), out_dtype=torch.bfloat16
            )
        else:
            product = (rows.float() @ self.rows.float().t()) * scale * self.scale.t()
        product = product.float() if self.bias is None else product.float() + self.bias.float()
        return product.to(states.dtype).reshape(*states.shape[:-1], -1)


def with_fp8_products(module: nn.Module) -> nn.Module:
    """Replace a module's linear layers in place, if their sizes are multiples of 16 as the kernels require."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear | Conv1D):
            weight = child.weight if isinstance(child, nn.Linear) else child.weight.t()
            if all(size % 16 == 0 for size in weight.shape):
                setattr(module, name, Fp8Linear(weight, child.bias))
        else:
            with_fp8_products(child)
    return module
