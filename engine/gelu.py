"""A linear layer and its GELU as one operator: one kernel on Hopper GPUs.

cuBLAS can only fuse the tanh approximation of GELU. So the wide product of a feed-forward block is written to memory,
read, and written again. ``gelu_kernel.py`` fuses the exact GELU; a generation's breakdown with and without "fusion"
(benchmarks/gpu.py) shows its effect.
"""

from __future__ import annotations

import logging
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear

from ..export.errors import first_line

HOPPER = (9, 0)
"""The compute capability that the kernel's tiles are tuned for."""
ALIGNED = 8
"""Sizes must be multiples of this: rows of 16 bytes."""

logger = logging.getLogger(__name__)


class GeluLinear(nn.Module):
    """A linear layer followed by the exact GELU."""

    bias: Tensor

    def __init__(self, source: nn.Linear) -> None:
        """Take the layer's weight and bias."""
        super().__init__()
        self.weight = source.weight
        bias: Tensor | None = source.bias
        self.register_buffer("bias", source.weight.new_zeros(source.out_features) if bias is None else bias.detach())

    def forward(self, states: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        out: Tensor = linear_gelu(states, self.weight, self.bias)
        return out


@torch.library.custom_op("bbt_fast::linear_gelu", mutates_args=())
def linear_gelu(states: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return gelu(states @ weight.T + bias), [..., in] -> [..., out]; opaque to the compiler."""
    if states.is_cuda and states.dtype in (torch.float16, torch.bfloat16) and _has_kernel(states.device):
        rows = states.reshape(-1, states.shape[-1])
        if len(rows) and not any(size % ALIGNED for size in weight.shape):
            from .gelu_kernel import linear_gelu_rows

            return linear_gelu_rows(rows, weight, bias).view(*states.shape[:-1], -1)
    return gelu(linear(states, weight, bias))


@linear_gelu.register_fake
def _(states: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    del bias
    return states.new_empty(*states.shape[:-1], weight.shape[0])


@cache
def _has_kernel(device: torch.device) -> bool:
    """Return whether the kernel runs on a GPU, by running it."""
    if torch.cuda.get_device_capability(device) != HOPPER:
        return False
    try:
        from .gelu_kernel import linear_gelu_rows

        some = torch.zeros(ALIGNED, ALIGNED, dtype=torch.float16, device=device)
        linear_gelu_rows(some, some, some[0])
    except Exception as error:  # noqa: BLE001  Triton raises many types
        logger.warning("the fused GELU kernel fails: continuing with a separate kernel (%s)", first_line(error))
        return False
    return True
