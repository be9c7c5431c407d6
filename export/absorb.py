"""Attention of one position that needs no keys and values: their matrices move over to its query.

Where a layer's keys and values are plain linear maps of what enters it, K = X Wk + bk and V = X Wv + bv, one query q
has the scores q K' = (q Wk') X' + q bk', and the last term, the same for every position, changes no softmax. What it
sees is softmax(.) V = (softmax(.) X) Wv + bv, since the weights add up to 1. So the hidden states themselves take the
place of keys and values, and a position costs 4 H multiply-adds per head where making its key and value costs 2 H^2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .attention import capture


@dataclass(frozen=True, eq=False)
class Absorbed:
    """The matrices that make a layer's keys and values of what enters it."""

    key: nn.Linear
    value: nn.Linear

    def __call__(self, query: Tensor, states: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
        """Attend with one query per row to all positions.

        Args:
            query: [B, heads, 1, d].
            states: [B, S, H], what enters the layer.
            mask: what may be seen, broadcast to [B, heads, 1, S]: boolean, or added to the scores; None for everything.
            scale: of the scores; None for 1 / sqrt(d).

        Returns:
            [B, heads, 1, d].
        """
        heads, d = query.shape[1], query.shape[3]
        by_head = query[:, :, 0].transpose(0, 1) * (d**-0.5 if scale is None else scale)
        keyed = torch.matmul(by_head, self.key.weight.view(heads, d, -1)).transpose(0, 1)
        scores = torch.matmul(keyed.float(), states.float().transpose(1, 2))  # as fused attention keeps them
        if mask is not None:
            seen = mask.expand(-1, -1, 1, -1)[:, :, 0]
            least = torch.finfo(scores.dtype).min
            scores = scores.masked_fill(~seen, least) if mask.dtype is torch.bool else scores + seen
        weights = scores.softmax(dim=-1).to(states.dtype)
        seen_states = torch.matmul(weights, states).transpose(0, 1)
        values = torch.matmul(seen_states, self.value.weight.view(heads, -1, states.shape[2]).transpose(1, 2))
        if self.value.bias is not None:
            values = values + self.value.bias.view(heads, 1, -1)
        return values.transpose(0, 1)[:, :, None]


def absorbed(layer: nn.Module, states: Tensor, run: Callable[[], Tensor]) -> Absorbed | None:
    """Return a layer's key and value matrices if it makes both of what enters it and of nothing else.

    A rotation, a norm or a bias between them would give the attention other memory than the matrices returned.

    Args:
        layer: the layer.
        states: [B, S, H], what enters it.
        run: runs it on just these states.
    """
    made: dict[int, tuple[nn.Linear, Tensor]] = {}

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if inputs[0] is states:
            assert isinstance(module, nn.Linear)
            made[output.data_ptr()] = module, output

    hooks = [part.register_forward_hook(note) for part in layer.modules() if isinstance(part, nn.Linear)]
    try:
        with torch.no_grad():
            keys_values, _ = capture(run)
    finally:
        for hook in hooks:
            hook.remove()
    if keys_values is None:
        return None
    found = [made.get(tensor.data_ptr()) for tensor in keys_values]
    if not all(
        source is not None and source[1].numel() == tensor.numel()
        for source, tensor in zip(found, keys_values, strict=True)
    ):
        return None
    (key, _), (value, _) = (source for source in found if source is not None)
    return Absorbed(key, value)
