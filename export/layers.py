"""Consecutive layers of a model, run as the model runs them, or for one position only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from .attention import KeysValues, after, capture, extend, supply, watch
from .recording import Call

Axes = tuple[str | None, ...]
"""What each axis of a tensor counts: "examples", "sequence", "target", "labels" or None for a fixed size."""


class Layers(nn.Module):
    """Layers and how the model calls each.

    Args:
        layers: in order; one that runs twice stands there twice.
        calls: how the model calls each of them.
        axes: what the recorded tensors' axes count.
        counts: what the positions of the hidden states are: "sequence", or "target" for a decoder's own tokens.
        causal: whether a position sees only those before it.
    """

    def __init__(
        self, layers: Sequence[nn.Module], calls: Sequence[Call], axes: Mapping[str, Axes], counts: str, causal: bool
    ) -> None:
        super().__init__()
        self.stack = nn.ModuleList(layers)
        self.calls = tuple(calls)
        self.names = tuple(dict.fromkeys(name for call in self.calls for name in call.names))
        self.axes = {name: axes[name] for name in self.names if name in axes}
        self.counts, self.causal = counts, causal

    def __len__(self) -> int:
        """Return how many layers there are."""
        return len(self.stack)

    def forward(self, states: Tensor, named: Mapping[str, Tensor], before: Sequence[KeysValues] = ()) -> Tensor:
        """Run all layers.

        Args:
            states: [B, S, H], what enters the first layer.
            named: the recorded tensors.
            before: the keys and values, per layer, of a prefix that the positions follow; none if they follow nothing.
        """
        for layer, call, prefix in self._steps(before):
            with extend(prefix):
                states = call(layer, states, named)
        return states

    def at(
        self,
        position: Tensor,
        states: Tensor,
        named: Mapping[str, Tensor],
        before: Sequence[KeysValues] = (),
        *,
        alone: bool = True,
    ) -> Tensor:
        """Run all layers and return the hidden states at one position ([B]) of each row: [B, S, H] -> [B, H].

        Args:
            position: where.
            states: what enters the first layer.
            named: the recorded tensors.
            before: as in forward().
            alone: run the last layer's queries, attention output and feed-forward block at that position only, and keys
                and values at all; nothing reads the rest.
        """
        *below, (layer, call, prefix) = self._steps(before)
        for each, its_call, its_prefix in below:
            with extend(its_prefix):
                states = its_call(each, states, named)
        if not alone:
            with extend(prefix):
                return take(call(layer, states, named), position, 1)[:, 0]
        keys_values, output = capture(lambda: call(layer, states, named))
        if keys_values is None:
            assert output is not None
            return take(output, position, 1)[:, 0]
        if prefix is not None:
            keys_values = after(prefix, keys_values)
        rows = dict(named) | {name: self._row(name, named[name], position) for name in call.names if name in self.axes}
        last = position[:, None] + keys_values[0].shape[2] - states.shape[1]
        seen = torch.arange(keys_values[0].shape[2], device=position.device) <= last
        with supply(keys_values, seen[:, None, None] if self.causal else None):
            return call(layer, take(states, position, 1), rows)[:, 0]

    def prefix(self, states: Tensor, named: Mapping[str, Tensor], *, last: bool) -> tuple[list[KeysValues], Tensor]:
        """Run the layers on a prefix [P, n, H].

        Args:
            states: what enters the first layer.
            named: the recorded tensors.
            last: whether nothing reads what the last of these layers returns, so that it ends at its attention.

        Returns:
            The keys and values of each layer, and the last hidden states that were computed.
        """
        found: list[KeysValues] = []
        for number, (layer, call, _) in enumerate(self._steps(()), 1):
            if last and number == len(self):
                keys_values, _ = capture(partial(call, layer, states, named))
                assert keys_values is not None
                return [*found, keys_values], states
            with watch() as seen:
                states = call(layer, states, named)
            found.append(seen[0])
        return found, states

    def _steps(self, before: Sequence[KeysValues]) -> list[tuple[nn.Module, Call, KeysValues | None]]:
        prefixes: Sequence[KeysValues | None] = before or [None] * len(self)
        return list(zip(self.stack, self.calls, prefixes, strict=True))

    def _row(self, name: str, tensor: Tensor, position: Tensor) -> Tensor:
        """Cut a recorded tensor to what belongs to one position's query; keys stay whole."""
        counted = [axis for axis, what in enumerate(self.axes[name]) if what == self.counts]
        if not counted or ("mask" in name and counted == [tensor.ndim - 1]):
            return tensor
        return take(tensor, position, counted[0])


def take(tensor: Tensor, position: Tensor, axis: int) -> Tensor:
    """Keep one position ([B]) per row along an axis: [B or 1, ..., S, ...] -> [B, ..., 1, ...]."""
    tensor = tensor.expand(position.shape[0], *tensor.shape[1:])
    index = position.view(-1, *[1] * (tensor.ndim - 1))
    return tensor.gather(axis, index.expand(*tensor.shape[:axis], 1, *tensor.shape[axis + 1 :]))
