"""Products in float8_e4m3fn: a layer's weights quantised once by output row, its inputs by row on the fly.

A row has a scale of its own, so its result depends on that row alone. Everything but the product keeps its dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

FP8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FP8).max
LEAST_SCALE = 1e-12
"""Keeps a row of zeros zero."""


def quantized(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows in fp8 and their scales; the product of both is close to the rows.

    Args:
        rows: [N, K]. A row with NaN or infinity has no finite scale, so its results are NaN.

    Returns:
        [N, K] in float8_e4m3fn and [N, 1] in float32.
    """
    wide = rows.float()
    scale = (wide.abs().amax(dim=1, keepdim=True) / LARGEST).clamp(min=LEAST_SCALE)
    return (wide / scale).clamp(-LARGEST, LARGEST).to(FP8), scale


class Fp8Linear(nn.Module):
    """A linear map whose product is of fp8 numbers: by the card's kernels on CUDA, by its fp32 twin elsewhere.

    Move a model to its device and dtype first: a later change of dtype would cast the quantised weights too.
    """

    rows: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """Quantise a weight of [out, in]."""
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
    """Replace, in place, the linear maps below a module whose sizes the kernels take: multiples of 16."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear | Conv1D):
            weight = child.weight if isinstance(child, nn.Linear) else child.weight.t()
            if all(size % 16 == 0 for size in weight.shape):
                setattr(module, name, Fp8Linear(weight, child.bias))
        else:
            with_fp8_products(child)
    return module
