"""Build the stages for texts whose recordings have the same tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from .anatomy import Anatomy, Recorded
from .layers import Layers
from .packing import Packing
from .prefix import PrefixStage, TextStage
from .prompts import Join, in_row
from .stages import DECODER_STATES, ENCODER_STATES, Answer, Stage
from .texts import Axes


class Plan:
    """Cuts a model into stages.

    Args:
        parts: the model's parts.
        recorded: their recorded inputs for a batch of texts.
        axes: the axes of the recorded tensors.
        joins: the join at each stage; one join makes one stage of all layers, else each layer is a stage.
        alone: whether the last layer runs for the answer position only.
    """

    def __init__(
        self, parts: Anatomy, recorded: Recorded, axes: Mapping[str, Axes], joins: Sequence[Join], alone: bool
    ) -> None:
        self.axes, self.joins, self.calls = axes, joins, recorded.calls
        self._parts, self._recorded, self._alone = parts, recorded, alone
        self._before: tuple[PrefixStage, ...] = ()
        self._made: dict[tuple[str, str], tuple[Stage, ...]] = {}

    def stages(self, packing: Packing | None = None) -> tuple[Stage, ...]:
        """Return the stages for whole texts.

        Args:
            packing: how they run on packed texts; None for padded texts.
        """
        return self._once("whole", packing, self._whole)

    def _once(
        self, what: str, packing: Packing | None, make: Callable[[Packing | None], tuple[Stage, ...]]
    ) -> tuple[Stage, ...]:
        """Build stages at the first call only: a runner is loaded once per tuple of stages."""
        key = (what, "" if packing is None else packing.kernel)
        if key not in self._made:
            self._made[key] = make(packing)
        return self._made[key]

    def _whole(self, packing: Packing | None) -> tuple[Stage, ...]:
        joins = self.joins if packing is None else [in_row(join) for join in self.joins]
        stages = tuple(
            Stage(layers, join, self._entrance(number), self._answer(number), packing)
            for number, (layers, join) in enumerate(zip(self._cut(), joins, strict=True))
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
        self, prefix: Tensor, tensors: Mapping[str, Tensor], packing: Packing | None = None
    ) -> tuple[tuple[PrefixStage, ...], tuple[Stage, ...]]:
        """Return the stages for the positions up to the prompt's end, and those for the rest.

        Args:
            prefix: [1, 1, n, H], the first stage's input.
            tensors: the layers' other inputs at these positions.
            packing: how the second stages run on packed texts; None for padded texts.
        """
        if not self._before:
            self._before = tuple(self._prefix_stage(number, layers) for number, layers in enumerate(self._cut()))
            for stage in self._before:
                with torch.no_grad():
                    stage.measure(prefix, *(tensors[name] for name in stage.names))
        n = prefix.shape[2]
        return self._before, self._once("text", packing, lambda packing: self._texts(n, packing))

    def _prefix_stage(self, number: int, layers: Layers) -> PrefixStage:
        join = Join("add", self.joins[-1].start, self.joins[-1].n_prompt_tokens)
        return PrefixStage(layers, join, self._entrance(number), last=number == len(self.joins) - 1)

    def _texts(self, n: int, packing: Packing | None) -> tuple[Stage, ...]:
        return tuple(
            TextStage(layers, Join("follow", 0, n), self._answer(number), self._before[number].layout, packing)
            for number, layers in enumerate(self._cut())
        )

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
        # A first layer that computes inputs of later layers cannot run for one position only.
        chained = parts.family.chained and len(parts.decoder_layers or parts.layers) == 1
        return Answer(parts.head, self._alone and not chained, parts.encoder_head, decoder)
