"""Attention for packed short texts: our Triton kernel, or PyTorch's flash kernel where that one does not apply.

Flash kernels work on tiles of 128 queries and keys. A text of 70 tokens fills less than a third of such a tile.
``short_attention_kernel.py`` keeps all keys of a text and iterates over its queries in small steps.
"""

from __future__ import annotations

import logging
from functools import cache

import torch
from torch import Tensor
from torch.nn.attention import varlen

from .errors import first_line

LONGEST = 128
"""The maximum length of a short text, in tokens."""
WIDTHS = (16, 32, 64, 128)
"""The head sizes that the kernel supports."""
LEAST_CAPABILITY = (8, 0)
"""The least compute capability that supports the kernel's number formats."""

logger = logging.getLogger(__name__)


@torch.library.custom_op("bbt_fast::row_attention", mutates_args=())
def row_attention(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int, scale: float) -> Tensor:
    """Attend within each text without a mask; opaque to the compiler.

    Args:
        query: [R, heads, d], all tokens of all candidates' texts; CUDA, fp16 or bf16.
        key: likewise.
        value: likewise.
        bounds: [texts + 1] int32, the offset of each text.
        longest: the tokens of the longest text.
        scale: factor of the scores.

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
    """Return whether the kernel runs on a GPU, by running it."""
    if torch.cuda.get_device_capability(device) < LEAST_CAPABILITY:
        return False
    try:
        from .short_attention_kernel import attend_short

        some = torch.zeros(16, 1, 16, dtype=torch.float16, device=device)
        attend_short(some, some, some, torch.tensor([0, 16], dtype=torch.int32, device=device), 16, 1.0)
    except Exception as error:  # noqa: BLE001  Triton raises many types
        logger.warning("the kernel for short texts fails: continuing with PyTorch's (%s)", first_line(error))
        return False
    return True
