"""A frozen model as a chain of stages, cut where prompts enter.

Shape letters, here and everywhere: P candidates, N examples, S sequence length, n prompt tokens, H hidden size,
d intrinsic dimension, C label words, L layers, B = P * N.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from .attention import capture, supply
from .recording import Call

Axes = tuple[str | None, ...]
"""What each axis of a tensor counts: "examples", "sequence", "labels" or None for a fixed size."""

ANSWER_AXES: dict[str, Axes] = {
    "answer_position": ("examples",),
    "label_rows": ("labels", None),
    "label_bias": ("labels",),
}
"""The tensors that an answering stage takes besides the recorded ones."""


class Stage(nn.Module):
    """Consecutive layers of the model, as the model calls them, for a whole population at once.

    ``forward(hidden [P, N, S, H], *tensors)`` returns hidden states [P, N, S, H], or the label words' logits
    [P, N, C] float32 if the stage answers. The tensors are those of ``names``, in order.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        calls: Sequence[Call],
        axes: dict[str, Axes],
        head: Sequence[nn.Module] | None = None,
        *,
        causal: bool = False,
        answer_only: bool = True,
    ) -> None:
        """Take the layers, how each is called, the axes of the recorded tensors, and the head if the stage answers."""
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.calls = tuple(calls)
        self.head = None if head is None else nn.Sequential(*head)
        self.causal, self.answer_only = causal, answer_only
        recorded = dict.fromkeys(name for call in self.calls for name in call.names)
        self.axes: dict[str, Axes] = {name: axes[name] for name in recorded}
        if head is not None:
            self.axes |= ANSWER_AXES

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors the stage takes after the hidden states, in order."""
        return tuple(self.axes)

    @property
    def answers(self) -> bool:
        """Whether logits come out, and not hidden states."""
        return self.head is not None

    def forward(self, hidden: Tensor, *tensors: Tensor) -> Tensor:
        """Run the layers, and the head if there is one."""
        population, examples, length, width = hidden.shape
        named = {
            name: _over_population(tensor, population)
            if self.axes[name][0] == "examples" and tensor.shape[0] == examples
            else tensor
            for name, tensor in zip(self.names, tensors, strict=True)
        }
        states = hidden.reshape(population * examples, length, width)
        run = list(zip(self.layers, self.calls, strict=True))
        for layer, call in run[: -1 if self.answers else None]:
            states = call(layer, states, named)
        if self.head is None:
            return states.reshape(population, examples, length, width)
        answer = self._at_answer(*run[-1], states, named)
        logits = linear(self.head(answer).float(), named["label_rows"].float(), named["label_bias"].float())
        return logits.reshape(population, examples, logits.shape[-1])

    def _at_answer(self, layer: nn.Module, call: Call, states: Tensor, named: dict[str, Tensor]) -> Tensor:
        """Run the last layer for the answer position only, keys and values for all: [B, S, H] -> [B, H].

        Queries, attention output and feed-forward block of the other positions are read by nothing.
        """
        position = named["answer_position"]
        if not self.answer_only:
            return _take(call(layer, states, named), position, 1)[:, 0]
        keys_values, output = capture(lambda: call(layer, states, named))
        if keys_values is None:
            assert output is not None
            return _take(output, position, 1)[:, 0]
        rows = {name: self._row(name, named[name], position) for name in call.names}
        masks = [rows[name] for name in call.names if "mask" in name]
        if self.causal and not masks:
            masks = [(torch.arange(states.shape[1], device=position.device) <= position[:, None])[:, None, None]]
        with supply(keys_values, masks[0] if masks else None):
            return call(layer, _take(states, position, 1), rows)[:, 0]

    def _row(self, name: str, tensor: Tensor, position: Tensor) -> Tensor:
        """Cut a recorded tensor to what belongs to the answer position's query."""
        counted = [axis for axis, what in enumerate(self.axes[name]) if what == "sequence"]
        if "mask" in name and counted and counted[-1] == tensor.ndim - 1:
            counted.pop()  # the keys stay whole
        return _take(tensor, position, counted[0]) if counted else tensor


def _take(tensor: Tensor, position: Tensor, axis: int) -> Tensor:
    """Keep one position ([B]) per row along an axis: [B or 1, ..., S, ...] -> [B, ..., 1, ...]."""
    tensor = tensor.expand(position.shape[0], *tensor.shape[1:])
    index = position.view(-1, *[1] * (tensor.ndim - 1))
    return tensor.gather(axis, index.expand(*tensor.shape[:axis], 1, *tensor.shape[axis + 1 :]))


def _over_population(tensor: Tensor, population: int) -> Tensor:
    """Repeat [N, ...] to [P * N, ...], examples innermost."""
    return tensor[None].expand(population, *tensor.shape).reshape(-1, *tensor.shape[1:])


def without(module: nn.Module, part: nn.Module) -> nn.Module:
    """Return a module whose ``part``, at any depth, passes its input through; the original stays as it is."""
    if module is part:
        return nn.Identity()
    twin = copy.copy(module)
    vars(twin)["_modules"] = {
        name: None if child is None else without(child, part) for name, child in module._modules.items()
    }
    return twin
