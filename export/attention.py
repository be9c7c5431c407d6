"""The attention function that bbt-fast models run: SDPA whose keys and values can be taken out or put in.

`transformers` models look their attention up by name. Ours is PyTorch's scaled dot product attention with two extra
powers, both exact and both independent of the family:

- ``capture``: run a layer up to its attention and return the keys and values of all its positions;
- ``supply``: run a layer for a few positions only, with the keys and values of all of them.

Together they compute a layer's output at the answer position alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "bbt_fast"
"""The name under which `transformers` knows this attention (``attn_implementation``)."""

KeysValues = tuple[Tensor, Tensor]


class _CapturedError(Exception):
    """Ends a layer's forward pass at its attention."""


_captured: ContextVar[list[KeysValues] | None] = ContextVar("captured", default=None)
_supplied: ContextVar[list[tuple[KeysValues, Tensor | None]] | None] = ContextVar("supplied", default=None)


def _attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Answer as SDPA does, [B, heads, S, d] -> [B, S, heads, d]."""
    captured = _captured.get()
    if captured is not None:
        captured.append((key, value))
        if not torch.compiler.is_exporting():
            raise _CapturedError
        return query.transpose(1, 2), None  # a tracer loses its place in an exception; it drops the rest as unused
    supplied = _supplied.get()
    if supplied:
        (key, value), mask = supplied.pop()
        attention_mask = mask if attention_mask is None else attention_mask
        kwargs["is_causal"] = False
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def capture(layer: Callable[[], Tensor]) -> tuple[KeysValues | None, Tensor | None]:
    """Run a layer up to its attention.

    Returns:
        The keys and values of all positions and None; or None and the layer's output if it does not look its
        attention up in `transformers` (DeBERTa), so that it ran to its end.
    """
    found: list[KeysValues] = []
    token = _captured.set(found)
    try:
        output = layer()
    except _CapturedError:
        pass
    finally:
        _captured.reset(token)
    return (found[0], None) if found else (None, output)


@contextmanager
def supply(keys_values: KeysValues, mask: Tensor | None) -> Iterator[None]:
    """Let the next attention read other keys and values; a layer's first is its self-attention.

    Args:
        keys_values: each [B, heads, S, d].
        mask: [B, 1, Q, S] boolean, True where a query may look, for an attention that has no mask of its own; None for
            everywhere.
    """
    token = _supplied.set([(keys_values, mask)])
    try:
        yield
    finally:
        _supplied.reset(token)
