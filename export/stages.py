"""The stages of a frozen model, cut where prompts enter.

Shape letters, used everywhere: P candidates, N examples, S sequence length, n prompt tokens, H hidden size,
d intrinsic dimension, C label words, L layers, T decoder tokens, B = P * N.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from .attention import KeysValues
from .layers import Layers
from .packing import Packing
from .prompts import Join
from .row import Row
from .texts import AXES, TEXT_INDEX, Axes

ANSWER_AXES: dict[str, Axes] = {
    "answer_position": ("examples",),
    "label_rows": ("labels", None),
    "label_bias": ("labels",),
}
"""The inputs of an answering stage besides the recorded tensors."""
DECODER_STATES = "decoder_states"
"""[N, T, H]: the decoder's input, the same for every candidate."""
ENCODER_STATES = "encoder_states"
"""[B, S, H]: the input of the decoder's cross-attention."""


@dataclass(frozen=True, eq=False)
class Answer:
    """What an answering stage runs after its layers."""

    head: Sequence[nn.Module]
    """The modules between the last layer and the vocabulary matrix, in order."""
    alone: bool = True
    """Whether the last layer runs for the answer position only."""
    encoder_head: Sequence[nn.Module] = ()
    """The modules between the encoder's last layer and the decoder, in order."""
    decoder: Layers | None = None


class Stage(nn.Module):
    """Consecutive layers of the model, for a whole population at once.

    ``forward(hidden [P, N, S, H], *tensors)`` returns hidden states [P, N, S, H], or the label words' logits
    [P, N, C] float32 if the stage answers. The prompt has already joined ``hidden``. The tensors are those of
    ``names``, in order.

    Args:
        layers: the layers.
        join: how prompts join the stage's input.
        entrance: the module between the joined embeddings and the first layer, if there is one.
        answer: what follows the layers, if the stage answers.
        packing: how the layers run on packed texts; None for padded texts. Packed hidden states are [P, 1, T, H],
            T tokens of N texts.
    """

    joined_axes: ClassVar[dict[str, Axes]] = {"hidden": ("population", "examples", "sequence", None)}
    """The axes of forward()'s arguments before the tensors."""

    def __init__(
        self,
        layers: Layers,
        join: Join,
        entrance: nn.Module | None = None,
        answer: Answer | None = None,
        packing: Packing | None = None,
    ) -> None:
        super().__init__()
        self.layers, self.join, self.entrance, self.packing = layers, join, entrance, packing
        self._answer = answer
        self.axes: dict[str, Axes] = {}
        if packing is None or answer is not None:
            self.axes |= layers.axes
        if packing is not None:
            self.axes |= packing.axes(answers=answer is not None, entrance=entrance is not None)
            self.joined_axes = dict(self.joined_axes) | {"hidden": ("population", None, "tokens", None)}  # type: ignore[misc]
        self.head: nn.Sequential | None = None
        self.decoder: Layers | None = None
        if answer is None:
            return
        self.head, self.decoder, self.alone = nn.Sequential(*answer.head), answer.decoder, answer.alone
        self.encoder_head = nn.Sequential(*answer.encoder_head)
        if answer.decoder is not None:
            self.axes |= answer.decoder.axes | {DECODER_STATES: ("examples", "target", None)}
        self.axes |= ANSWER_AXES

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the tensors after the hidden states, in order."""
        return tuple(self.axes)

    @property
    def answers(self) -> bool:
        """Whether the stage returns logits instead of hidden states."""
        return self.head is not None

    def prompt_width(self, hidden_size: int) -> int:
        """Return the width of the prompt that joins."""
        return hidden_size

    def output_width(self, hidden_size: int) -> int:
        """Return the width of the returned hidden states."""
        return hidden_size

    @property
    def n_attentions(self) -> int:
        """The number of attention operators in the graph; a last layer with absorbed projections has none."""
        whole = len(self.layers) + (0 if self.decoder is None else 2 * len(self.decoder))
        last = self.layers if self.decoder is None else self.decoder
        return whole - (self.answers and self.alone and last.absorbed is not None)

    def links(self) -> tuple[Stage, ...]:
        """Split the stage into stages of one layer each; a stage that cannot be split returns itself."""
        last = len(self.layers) - 1
        if not last:
            return (self,)
        return tuple(
            Stage(
                self.layers.only(number),
                self.join,
                None if number else self.entrance,
                self._answer if number == last else None,
                self.packing,
            )
            for number in range(last + 1)
        )

    def forward(self, hidden: Tensor, *tensors: Tensor) -> Tensor:
        """Run the layers, and compute logits if the stage answers."""
        return self.run(hidden, tensors)

    def run(self, hidden: Tensor, tensors: Sequence[Tensor], before: Sequence[KeysValues] = ()) -> Tensor:
        """Do the same as forward(), for positions after a prefix with these keys and values per layer."""
        population, examples, length, width = hidden.shape
        given = dict(zip(self.names, tensors, strict=True))
        row = None if self.packing is None else self.packing.row(given)
        if row is not None and self.head is not None:
            examples = given[TEXT_INDEX].shape[0]
        named = self.named(given, population, examples)
        states = hidden.flatten(0, 1)
        if self.entrance is not None:
            positions = torch.arange(length, device=hidden.device)[None] if row is None else row.positions()
            states = self.entrance(states, positions)
        if self.head is None:
            return self.layers(states, named, before, row).reshape(population, examples, length, width)  # type: ignore[no-any-return]
        answer = self.head(self._answer_state(states, named, before, row))
        logits = linear(answer.float(), named["label_rows"].float(), named["label_bias"].float())
        return logits.reshape(population, examples, logits.shape[-1])

    def named(self, given: Mapping[str, Tensor], population: int, examples: int) -> dict[str, Tensor]:
        """Return the tensors by name; those that differ between examples are repeated for each candidate."""
        return {
            name: _over_population(tensor, population)
            if name not in AXES and self.axes[name][0] == "examples" and tensor.shape[0] == examples
            else tensor
            for name, tensor in given.items()
        }

    def _answer_state(
        self, states: Tensor, named: Mapping[str, Tensor], before: Sequence[KeysValues], row: Row | None
    ) -> Tensor:
        """Return the last hidden states at the answer position: [B, S, H] -> [B, H]."""
        position = named["answer_position"]
        if self.decoder is None:
            return self.layers.at(position, states, named, before, row, alone=self.alone)
        encoded = self.layers(states, named, before, row)
        memory = {ENCODER_STATES: self.encoder_head(encoded if row is None else row.unpack(encoded))}
        return self.decoder.at(position, named[DECODER_STATES], {**named, **memory}, alone=self.alone)


def _over_population(tensor: Tensor, population: int) -> Tensor:
    """Repeat [N, ...] to [P * N, ...], examples innermost."""
    return tensor[None].expand(population, *tensor.shape).reshape(-1, *tensor.shape[1:])


def without(module: nn.Module, part: nn.Module) -> nn.Module:
    """Return a copy of a module in which ``part``, at any depth, is an identity."""
    twin = copy.copy(module)
    vars(twin)["_modules"] = {
        name: nn.Identity() if child is part else None if child is None else without(child, part)
        for name, child in module._modules.items()
    }
    return twin
