"""Attention within short texts of a row: PyTorch's flash kernel by their bounds, or one made for texts of a tile.

Flash kernels take tiles of 128 queries and keys, of which a text of 70 tokens fills less than a third.
``short_attention_kernel.py`` holds a text's keys whole and goes over its queries in small steps.
"""

from __future__ import annotations

import logging
from functools import cache

import torch
from torch import Tensor
from torch.nn.attention import varlen

LONGEST = 128
"""Up to so many tokens a text is short."""
WIDTHS = (16, 32, 64, 128)
"""The widths of heads that the kernel takes."""
LEAST_CAPABILITY = (8, 0)
"""The compute capability from which the kernel's formats are there."""

logger = logging.getLogger(__name__)


@torch.library.custom_op("bbt_fast::row_attention", mutates_args=())
def row_attention(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int, scale: float) -> Tensor:
    """Attend within each text, with no mask; the compiler takes it as it is.

    Args:
        query: [R, heads, d], all tokens of all candidates' texts; CUDA, fp16 or bf16.
        key: likewise.
        value: likewise.
        bounds: [texts + 1] int32, how many tokens stand before each text.
        longest: the tokens of the longest text.
        scale: what scores are multiplied by.

    Returns:
        [R, heads, d].
    """
    if query.is_cuda and longest <= LONGEST and query.shape[2] in WIDTHS and _has_kernel(query.device):
        from .short_attention_kernel import attend_short

        return attend_short(query, key, value, bounds, longest, scale)
    whole = (-1, -1)
    seen = varlen.varlen_attn(query, key, value, bounds, bounds, longest, longest, scale=scale, window_size=whole)
    assert isinstance(seen, Tensor)
    return seen


@row_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int, scale: float) -> Tensor:
    del key, value, bounds, longest, scale
    return query.new_empty(query.shape)


@cache
def _has_kernel(device: torch.device) -> bool:
    """Tell whether the kernel runs on a GPU, by running it."""
    if torch.cuda.get_device_capability(device) < LEAST_CAPABILITY:
        return False
    try:
        from .short_attention_kernel import attend_short

        some = torch.zeros(16, 1, 16, dtype=torch.float16, device=device)
        attend_short(some, some, some, torch.tensor([0, 16], dtype=torch.int32, device=device), 16, 1.0)
    except Exception as error:  # noqa: BLE001  Triton raises what its many parts raise
        logger.warning("short texts attend on PyTorch's kernel for long ones (%s)", str(error).partition("\n")[0])
        return False
    return True
