"""Consecutive layers of a model, run for all positions or for one position per text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from .absorb import Absorbed, absorbed
from .attention import KeysValues, after, attend, capture, extend, pack, supply, watch
from .recording import Call
from .row import Row
from .texts import Axes


class Layers(nn.Module):
    """Layers with their recorded calls.

    Args:
        layers: in order; a layer that runs twice is listed twice.
        calls: the model's call of each layer.
        axes: the axes of the recorded tensors.
        counts: the axis that counts positions: "sequence", or "target" for a decoder's tokens.
        causal: whether attention is causal.
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
        self.absorbed: Absorbed | None = None
        """The last layer's absorbed projections, if absorb() has found that it does without keys and values."""

    def __len__(self) -> int:
        """Return how many layers there are."""
        return len(self.stack)

    def only(self, number: int) -> Layers:
        """Return one of the layers."""
        one = Layers([self.stack[number]], [self.calls[number]], self.axes, self.counts, self.causal)
        one.absorbed = self.absorbed if number == len(self) - 1 else None
        return one

    def forward(
        self,
        states: Tensor,
        named: Mapping[str, Tensor],
        before: Sequence[KeysValues] = (),
        row: Row | None = None,
    ) -> Tensor:
        """Run all layers.

        Args:
            states: [B, S, H], the first layer's input; [P, T, H] for packed texts.
            named: the recorded tensors.
            before: per layer the keys and values of a prefix before these positions; empty without a prefix.
            row: the layout of packed texts; None for padded texts.
        """
        return self._run(self._steps(before), states, named, row)

    def at(
        self,
        position: Tensor,
        states: Tensor,
        named: Mapping[str, Tensor],
        before: Sequence[KeysValues] = (),
        row: Row | None = None,
        *,
        alone: bool = True,
    ) -> Tensor:
        """Run all layers and return the hidden states at one position ([B]) of each text: [B, S, H] -> [B, H].

        With ``alone`` the last layer computes queries, attention output and feed-forward block for that position only.
        It computes keys and values for all positions, unless absorb() has found them unnecessary. If the kernel of
        packed texts cannot attend for single positions, the last layer unpacks them.
        """
        *below, (layer, call, prefix) = self._steps(before)
        states = self._run(below, states, named, row)
        rows = dict(named) | {name: self._row(name, named[name], position) for name in call.names if name in self.axes}
        if row is not None and alone and prefix is None and (attend_alone := row.attend_alone) is not None:
            found, _ = capture(lambda: call(layer, states, row.named))
            if found is not None:
                with attend(lambda query, mask, scale: attend_alone(query, found, scale), None):
                    return call(layer, row.at(position, states), rows)[:, 0]
        if row is not None:
            states, prefix = row.unpack(states), None if prefix is None else row.repeat(prefix)
        if not alone:
            with extend(prefix):
                return take(call(layer, states, named), position, 1)[:, 0]
        one = take(states, position, 1)
        if prefix is None and (own := self.absorbed) is not None:
            seen = self._seen(position, states.shape[1])
            with attend(lambda query, mask, scale: own(query, states, mask, scale), seen):
                return call(layer, one, rows)[:, 0]
        keys_values, output = capture(lambda: call(layer, states, named))
        if keys_values is None:
            assert output is not None
            return take(output, position, 1)[:, 0]
        if prefix is not None:
            keys_values = after(prefix, keys_values)
        length = keys_values[0].shape[2]
        with supply(keys_values, self._seen(position + length - states.shape[1], length)):
            return call(layer, one, rows)[:, 0]

    def absorb(self, states: Tensor, named: Mapping[str, Tensor]) -> None:
        """Determine whether the last layer can do without keys and values for one position.

        Args:
            states: [B, S, H], an example of a layer's input.
            named: the recorded tensors for it.
        """
        layer, call = self.stack[-1], self.calls[-1]
        self.absorbed = absorbed(layer, states, lambda: call(layer, states, named))

    def prefix(self, states: Tensor, named: Mapping[str, Tensor], *, last: bool) -> tuple[list[KeysValues], Tensor]:
        """Run the layers on a prefix [P, n, H].

        Args:
            states: the first layer's input.
            named: the recorded tensors.
            last: stop at the last layer's attention, because nothing reads its output.

        Returns:
            The keys and values of each layer, and the last computed hidden states.
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

    def _run(
        self,
        steps: Sequence[tuple[nn.Module, Call, KeysValues | None]],
        states: Tensor,
        named: Mapping[str, Tensor],
        row: Row | None,
    ) -> Tensor:
        for layer, call, prefix in steps:
            with extend(prefix), pack(row):
                states = call(layer, states, named if row is None else row.named)
        return states

    def _steps(self, before: Sequence[KeysValues]) -> list[tuple[nn.Module, Call, KeysValues | None]]:
        prefixes: Sequence[KeysValues | None] = before or [None] * len(self)
        return list(zip(self.stack, self.calls, prefixes, strict=True))

    def _seen(self, position: Tensor, length: int) -> Tensor | None:
        """Return the attention mask of one position per row, [B, 1, 1, length]; None for no mask."""
        if not self.causal:
            return None
        return (torch.arange(length, device=position.device) <= position[:, None])[:, None, None]

    def _row(self, name: str, tensor: Tensor, position: Tensor) -> Tensor:
        """Select one query position of a recorded tensor; an axis of keys stays whole."""
        counted = [axis for axis, what in enumerate(self.axes[name]) if what == self.counts]
        if not counted or ("mask" in name and counted == [tensor.ndim - 1]):
            return tensor
        return take(tensor, position, counted[0])


def take(tensor: Tensor, position: Tensor, axis: int) -> Tensor:
    """Keep one position ([B]) per row along an axis: [B or 1, ..., S, ...] -> [B, ..., 1, ...]."""
    tensor = tensor.expand(position.shape[0], *tensor.shape[1:])
    index = position.view(-1, *[1] * (tensor.ndim - 1))
    return tensor.gather(axis, index.expand(*tensor.shape[:axis], 1, *tensor.shape[axis + 1 :]))
