"""The attention function of bbt-fast models: SDPA with hooks to read and replace keys and values.

`transformers` models look up their attention function by name. This one is PyTorch's scaled dot product attention with
these hooks, all exact and independent of the family:

- ``capture``: run a layer up to its attention and return the keys and values of all positions;
- ``supply``: run a layer for a few positions with given keys and values;
- ``attend``: run a layer for one position with another attention function;
- ``watch``: run a layer unchanged and record its keys and values;
- ``extend``: run a causal layer on the positions after a prefix, with the prefix's keys and values;
- ``pack``: run a layer on packed texts (``packing.py``).

The first three compute a layer's output for the answer position only, the next two a prompt once for many texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "bbt_fast"
"""The name of this attention in `transformers` (``attn_implementation``)."""

KeysValues = tuple[Tensor, Tensor]
"""Each [B, heads, S, d]."""
Attend = Callable[[Tensor, Tensor | None, float | None], Tensor]
"""Maps queries [B, heads, Q, d], a mask or None, and a scale or None (1 / sqrt(d)) to outputs [B, heads, Q, d]."""
T = TypeVar("T")


class Packed(Protocol):
    """Packed texts (``row.Row``)."""

    def attend(
        self,
        module: torch.nn.Module,
        qkv: tuple[Tensor, Tensor, Tensor],
        before: KeysValues | None,
        how: dict[str, Any],
    ) -> Tensor:
        """Attend within each text: queries, keys and values [P, heads, T, d] -> [P, T, heads, d]."""
        ...


class _CapturedError(Exception):
    """Stops a layer's forward pass at its attention."""


_captured: ContextVar[list[KeysValues] | None] = ContextVar("captured", default=None)
_supplied: ContextVar[list[tuple[KeysValues, Tensor | None]] | None] = ContextVar("supplied", default=None)
_attend: ContextVar[list[tuple[Attend, Tensor | None]] | None] = ContextVar("attend", default=None)
_watched: ContextVar[list[KeysValues] | None] = ContextVar("watched", default=None)
_before: ContextVar[KeysValues | None] = ContextVar("before", default=None)
_packed: ContextVar[Packed | None] = ContextVar("packed", default=None)


def _attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Run SDPA with the active hooks, [B, heads, S, d] -> [B, S, heads, d]."""
    if (packed := _packed.get()) is not None:
        return packed.attend(module, (query, key, value), _before.get(), kwargs), None
    captured, supplied, watched = _captured.get(), _supplied.get(), _watched.get()
    if captured is not None:
        captured.append((key, value))
        if not torch.compiler.is_exporting():
            raise _CapturedError
        return query.transpose(1, 2), None  # an exception would break the trace; the exporter prunes the unused rest
    if watched is not None:
        watched.append((key, value))
    if supplied:
        (key, value), mask = supplied.pop()
        attention_mask = mask if attention_mask is None else attention_mask
        kwargs["is_causal"] = False
    if attend := _attend.get():
        own, mask = attend.pop()
        seen = own(query, mask if attention_mask is None else attention_mask, kwargs.get("scaling"))
        return seen.transpose(1, 2), None
    return sdpa(module, query, key, value, attention_mask, _before.get(), kwargs), None


def sdpa(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    before: KeysValues | None,
    how: dict[str, Any],
) -> Tensor:
    """Run PyTorch's attention, [B, heads, S, d] -> [B, S, heads, d], with the arguments of `transformers`.

    All queries see the keys and values of the prefix ``before``; the other positions are causal then.
    """
    if before is not None:
        (key, value), prefix = after(before, (key, value)), before[0].shape[2]
        columns = torch.arange(key.shape[2], device=key.device)
        mask = (columns <= columns[prefix:, None])[None, None]
        how = how | {"is_causal": False}
    return sdpa_attention_forward(module, query, key, value, mask, **how)[0]


# PyTorch's compiler does not support context variables.
AttentionInterface.register(NAME, torch.compiler.disable(_attention))  # type: ignore[no-untyped-call]
AttentionMaskInterface.register(NAME, sdpa_mask)


def after(prefix: KeysValues, own: KeysValues) -> KeysValues:
    """Append keys and values to those of a prefix."""
    return torch.cat([prefix[0], own[0]], dim=2), torch.cat([prefix[1], own[1]], dim=2)


def capture(layer: Callable[[], Tensor]) -> tuple[KeysValues | None, Tensor | None]:
    """Run a layer up to its attention.

    Returns:
        The keys and values of all positions, and None. A layer that does not look up its attention in `transformers`
        (DeBERTa) runs to its end: then None and the layer's output.
    """
    found: list[KeysValues] = []
    output: Tensor | None = None
    with suppress(_CapturedError), _within(_captured, found):
        output = layer()
    return (found[0], None) if found else (None, output)


@contextmanager
def _within(variable: ContextVar[Any], value: T) -> Iterator[T]:
    """Set a variable within this block."""
    token = variable.set(value)
    try:
        yield value
    finally:
        variable.reset(token)


def supply(keys_values: KeysValues, mask: Tensor | None) -> AbstractContextManager[Any]:
    """Replace the keys and values of the next attention. A layer's first attention is its self-attention.

    Args:
        keys_values: of all positions.
        mask: [B, 1, Q, S] boolean, True where a query may look. It applies if the layer passes no mask of its own; None
            for no mask.
    """
    return _within(_supplied, [(keys_values, mask)])


def attend(own: Attend, mask: Tensor | None) -> AbstractContextManager[Any]:
    """Replace the next attention function. A layer's first attention is its self-attention.

    Args:
        own: the attention function.
        mask: as for ``supply``.
    """
    return _within(_attend, [(own, mask)])


def watch() -> AbstractContextManager[list[KeysValues]]:
    """Record the keys and values of every attention within this block, in order."""
    found: list[KeysValues] = []
    return _within(_watched, found)


def extend(prefix: KeysValues | None) -> AbstractContextManager[Any]:
    """Let causal attention within this block also read a prefix, if one is given."""
    return _within(_before, prefix)


def pack(row: Packed | None) -> AbstractContextManager[Any]:
    """Restrict attention within this block to each packed text; None for padded batches."""
    return _within(_packed, row)
