"""The stages for texts of which the model's layers are given the same kinds of things."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from .anatomy import Anatomy, Recorded
from .layers import Axes, Layers
from .prefix import PrefixStage, TextStage
from .prompts import Join
from .stages import DECODER_STATES, ENCODER_STATES, Answer, Stage


class Plan:
    """How to cut a model into stages.

    Args:
        parts: the model's parts.
        recorded: what they are given for a batch of texts.
        axes: what the recorded tensors' axes count.
        joins: how prompts join what enters each stage; with one join there is one stage, else one per layer.
        alone: whether the last layer runs for the answer position only.
    """

    def __init__(
        self, parts: Anatomy, recorded: Recorded, axes: Mapping[str, Axes], joins: Sequence[Join], alone: bool
    ) -> None:
        self.axes, self.joins = axes, joins
        self._parts, self._recorded, self._alone = parts, recorded, alone
        self._shared: tuple[tuple[PrefixStage, ...], tuple[TextStage, ...]] | None = None

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """The stages for whole texts."""
        stages = tuple(
            Stage(layers, join, self._entrance(number), self._answer(number))
            for number, (layers, join) in enumerate(zip(self._cut(), self.joins, strict=True))
        )
        recorded = self._recorded
        examples, text, width = recorded.embedded.shape
        states = recorded.embedded.new_zeros(examples, self.joins[0].length(text), width)
        tensors = recorded.tensors | {ENCODER_STATES: states}
        if (decoder := stages[-1].decoder) is None:
            stages[-1].layers.absorb(states, tensors)
        else:
            decoder.absorb(tensors[DECODER_STATES], tensors)
        return stages

    def shared(
        self, prefix: Tensor, tensors: Mapping[str, Tensor]
    ) -> tuple[tuple[PrefixStage, ...], tuple[TextStage, ...]]:
        """Return the stages for the positions up to the prompt's end, and those for what follows.

        Args:
            prefix: [1, 1, n, H], what enters the first.
            tensors: what the layers take there.
        """
        if self._shared is None:
            n = prefix.shape[2]
            join = Join("add", self.joins[-1].start, self.joins[-1].n_prompt_tokens)
            last = len(self.joins) - 1
            before, texts = [], []
            for number, layers in enumerate(self._cut()):
                before.append(PrefixStage(layers, join, self._entrance(number), last=number == last))
                with torch.no_grad():
                    before[-1].measure(prefix, *(tensors[name] for name in before[-1].names))
                texts.append(TextStage(layers, Join("follow", 0, n), self._answer(number), before[-1].layout))
            self._shared = tuple(before), tuple(texts)
        return self._shared

    def _cut(self) -> list[Layers]:
        modules, calls = self._parts.layers, self._recorded.calls
        size = len(modules) // len(self.joins)
        return [
            Layers(
                modules[begin : begin + size],
                calls[begin : begin + size],
                self.axes,
                "sequence",
                causal=self._parts.family.kind == "decoder",
            )
            for begin in range(0, len(modules), size)
        ]

    def _entrance(self, number: int) -> torch.nn.Module | None:
        return self._parts.entrance if number == 0 else None

    def _answer(self, number: int) -> Answer | None:
        if number < len(self.joins) - 1:
            return None
        parts, decoder = self._parts, None
        if parts.decoder_layers:
            decoder = Layers(parts.decoder_layers, self._recorded.decoder_calls, self.axes, "target", causal=True)
        # A first layer that makes what later ones are given cannot run for one position.
        chained = parts.family.chained and len(parts.decoder_layers or parts.layers) == 1
        return Answer(parts.head, self._alone and not chained, parts.encoder_head, decoder)
