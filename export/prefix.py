"""Shared prefix: compute a causal model's prompt once per candidate for all texts.

A position of a causal model does not see later positions. So the hidden states, keys and values of the prompt are the
same for all texts. Two chains replace one: prefix stages run the prompt's positions, and text stages run the rest of
each text with the prefix's keys and values. Both have one stage per cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from .attention import KeysValues
from .layers import Layers
from .packing import Packing
from .prompts import Join
from .stages import Answer, Stage
from .texts import Axes

Layout = tuple[tuple[int, int, int], ...]
"""Per layer: heads, features of a key, features of a value."""


class PrefixStage(Stage):
    """The layers of a stage on the positions up to the prompt's end, which all texts share.

    ``forward(hidden [P, 1, n, H], *tensors)`` returns the prefix's state [P, 1, n, W]: the keys and values of each
    layer, then the input of the next stage. The last stage has no next one and returns its last layer's input, so all
    states have the same layout.
    """

    joined_axes: ClassVar[dict[str, Axes]] = {"hidden": ("population", None, None, None)}

    def __init__(self, layers: Layers, join: Join, entrance: nn.Module | None, *, last: bool) -> None:
        super().__init__(layers, join, entrance)
        self.axes = {name: (None,) * len(axes) for name, axes in self.axes.items()}
        self.last = last
        self.layout: Layout = ()
        """Set by measure()."""

    @property
    def n_attentions(self) -> int:
        """The number of attention operators in the graph."""
        return len(self.layers) - self.last

    def links(self) -> tuple[Stage, ...]:
        """Return itself: its output holds the keys and values of all layers."""
        return (self,)

    def forward(self, hidden: Tensor, *tensors: Tensor) -> Tensor:
        """Run the layers and concatenate keys, values and hidden states."""
        keys_values, states = self._run(hidden, tensors)
        packed = [part.transpose(1, 2).flatten(2) for layer in keys_values for part in layer]
        return torch.cat([*packed, states], dim=-1)[:, None]

    def measure(self, hidden: Tensor, *tensors: Tensor) -> None:
        """Record the layout of the layers' keys and values."""
        self.layout = tuple((k.shape[1], k.shape[3], v.shape[3]) for k, v in self._run(hidden, tensors)[0])

    def output_width(self, hidden_size: int) -> int:
        """Return W."""
        return _width(self.layout) + hidden_size

    def _run(self, hidden: Tensor, tensors: Sequence[Tensor]) -> tuple[list[KeysValues], Tensor]:
        states = hidden[:, 0]
        if self.entrance is not None:
            states = self.entrance(states, torch.arange(states.shape[1], device=states.device)[None])
        named = self.named(dict(zip(self.names, tensors, strict=True)), hidden.shape[0], 1)
        return self.layers.prefix(states, named, last=self.last)


class TextStage(Stage):
    """The layers of a stage on the positions after the prompt.

    ``forward(hidden [P, N, S, H], prefix [P, n, W], *tensors)`` returns the same as ``Stage``; ``prefix`` is the output
    of the prefix stage with the same layers.
    """

    joined_axes: ClassVar[dict[str, Axes]] = {
        "hidden": ("population", "examples", "sequence", None),
        "prefix": ("population", None, None),
    }

    def __init__(
        self, layers: Layers, join: Join, answer: Answer | None, layout: Layout, packing: Packing | None = None
    ) -> None:
        super().__init__(layers, join, answer=answer, packing=packing)
        self.layout = layout

    def links(self) -> tuple[Stage, ...]:
        """Return itself: the prefix holds the keys and values of all layers."""
        return (self,)

    def forward(self, hidden: Tensor, prefix: Tensor, *tensors: Tensor) -> Tensor:  # type: ignore[override]
        """Run the layers, and compute logits if the stage answers."""
        return self.run(hidden, tensors, self._keys_values(prefix, hidden.shape[1]))

    def prompt_width(self, hidden_size: int) -> int:
        """Return W."""
        return _width(self.layout) + hidden_size

    def _keys_values(self, prefix: Tensor, examples: int) -> list[KeysValues]:
        """Split a prefix's state and repeat it for all examples: [P, n, W] -> per layer [B, heads, n, d]."""
        population, n, width = prefix.shape
        sizes = [heads * size for heads, *both in self.layout for size in both]
        parts = torch.split(prefix, [*sizes, width - sum(sizes)], dim=-1)
        heads = [heads for heads, *_ in self.layout for _ in range(2)]
        every = [
            part.reshape(population, 1, n, count, -1).transpose(2, 3).expand(-1, examples, -1, -1, -1).flatten(0, 1)
            for part, count in zip(parts, heads, strict=False)
        ]
        return list(zip(every[::2], every[1::2], strict=True))


def _width(layout: Layout) -> int:
    return sum(heads * (keys + values) for heads, keys, values in layout)


def can_split(axes: Mapping[str, Axes]) -> bool:
    """Return whether recorded tensors can be split into a prefix and a text part.

    A mask over pairs of positions, such as a sliding window, cannot be split. Without one the layers are causal.
    """
    return all("examples" not in counts and counts.count("sequence") <= 1 for counts in axes.values())


def split(tensors: Mapping[str, Tensor], axes: Mapping[str, Axes], n: int) -> tuple[dict[str, Tensor], ...]:
    """Split recorded tensors into those of the first n positions and the rest."""

    def cut(name: str, tensor: Tensor, part: slice) -> Tensor:
        return tensor[tuple(part if what == "sequence" else slice(None) for what in axes[name])]

    both = (slice(None, n), slice(n, None))
    return tuple({name: cut(name, tensors[name], part).contiguous() for name in axes} for part in both)
