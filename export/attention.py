"""The attention function that bbt-fast models run: SDPA whose keys and values can be taken out or put in.

`transformers` models look their attention up by name. Ours is PyTorch's scaled dot product attention with some extra
powers, all exact and all independent of the family:

- ``capture``: run a layer up to its attention and return the keys and values of all its positions;
- ``supply``: run a layer for a few positions only, with the keys and values of all of them;
- ``attend``: run a layer for one position only, with an attention of the caller's own;
- ``watch``: run a layer as it is and take down its keys and values;
- ``extend``: run a causal layer on what follows a prefix, with the prefix's keys and values;
- ``pack``: run a layer on texts that stand one behind the other in a row (``packing.py``).

The first three compute a layer's output at the answer position alone, the next two a prompt only once for many texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "bbt_fast"
"""The name under which `transformers` knows this attention (``attn_implementation``)."""

KeysValues = tuple[Tensor, Tensor]
"""Each [B, heads, S, d]."""
Attend = Callable[[Tensor, Tensor | None, float | None], Tensor]
"""Takes queries [B, heads, Q, d], a mask or None, and the scores' scale or None for 1 / sqrt(d); returns what they see,
[B, heads, Q, d]."""


class Packed(Protocol):
    """Texts in a row (``packing.Row``)."""

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
    """Ends a layer's forward pass at its attention."""


_captured: ContextVar[list[KeysValues] | None] = ContextVar("captured", default=None)
_supplied: ContextVar[list[tuple[KeysValues, Tensor | None]] | None] = ContextVar("supplied", default=None)
_attend: ContextVar[list[tuple[Attend, Tensor | None]] | None] = ContextVar("attend", default=None)
_watched: ContextVar[list[KeysValues] | None] = ContextVar("watched", default=None)
_before: ContextVar[KeysValues | None] = ContextVar("before", default=None)
_packed: ContextVar[Packed | None] = ContextVar("packed", default=None)


def _attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Answer as SDPA does, [B, heads, S, d] -> [B, S, heads, d]."""
    if (packed := _packed.get()) is not None:
        return packed.attend(module, (query, key, value), _before.get(), kwargs), None
    captured, supplied, watched = _captured.get(), _supplied.get(), _watched.get()
    if captured is not None:
        captured.append((key, value))
        if not torch.compiler.is_exporting():
            raise _CapturedError
        return query.transpose(1, 2), None  # a tracer loses its place in an exception; it drops the rest as unused
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
    """Run PyTorch's attention, [B, heads, S, d] -> [B, S, heads, d].

    Args:
        module: the attention module.
        query: [B, heads, S, d].
        key: likewise.
        value: likewise.
        mask: True where a query may look, broadcast to [B, heads, S, S]; None for what the module says itself.
        before: keys and values of a prefix that all queries see; what follows it is causal then.
        how: what `transformers` hands to an attention function.
    """
    if before is not None:
        (key, value), prefix = after(before, (key, value)), before[0].shape[2]
        columns = torch.arange(key.shape[2], device=key.device)
        mask = (columns <= columns[prefix:, None])[None, None]
        how = how | {"is_causal": False}
    return sdpa_attention_forward(module, query, key, value, mask, **how)[0]


# PyTorch's compiler knows no context variables.
AttentionInterface.register(NAME, torch.compiler.disable(_attention))  # type: ignore[no-untyped-call]
AttentionMaskInterface.register(NAME, sdpa_mask)


def after(prefix: KeysValues, own: KeysValues) -> KeysValues:
    """Return the keys and values of a prefix and of what follows it."""
    return torch.cat([prefix[0], own[0]], dim=2), torch.cat([prefix[1], own[1]], dim=2)


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
        keys_values: of all positions.
        mask: [B, 1, Q, S] boolean, True where a query may look, for an attention that has no mask of its own; None for
            everywhere.
    """
    token = _supplied.set([(keys_values, mask)])
    try:
        yield
    finally:
        _supplied.reset(token)


@contextmanager
def attend(own: Attend, mask: Tensor | None) -> Iterator[None]:
    """Let the next attention be another one; a layer's first is its self-attention.

    Args:
        own: the attention.
        mask: as for ``supply``.
    """
    token = _attend.set([(own, mask)])
    try:
        yield
    finally:
        _attend.reset(token)


@contextmanager
def watch() -> Iterator[list[KeysValues]]:
    """Take down the keys and values of every attention within this block, in order."""
    found: list[KeysValues] = []
    token = _watched.set(found)
    try:
        yield found
    finally:
        _watched.reset(token)


@contextmanager
def extend(prefix: KeysValues | None) -> Iterator[None]:
    """Let causal attention within this block look at a prefix too; None for none."""
    token = _before.set(prefix)
    try:
        yield
    finally:
        _before.reset(token)


@contextmanager
def pack(row: Packed | None) -> Iterator[None]:
    """Let attention within this block go by the bounds of texts in a row; None for whole batches."""
    token = _packed.set(row)
    try:
        yield
    finally:
        _packed.reset(token)
