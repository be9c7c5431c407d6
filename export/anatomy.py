"""The parts of a model, located by its row in ``families.py``, and their recorded inputs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .attention import NAME
from .errors import ShapeError
from .examples import Examples
from .families import family_of
from .recording import Call, Recording, record, replaced
from .stages import DECODER_STATES, ENCODER_STATES, without


@dataclass(frozen=True, eq=False)
class Recorded:
    """The inputs of a model's parts for one batch of texts."""

    embedded: Tensor
    """[N, S, H]: the hidden states that a prompt at the input joins."""
    tensors: dict[str, Tensor]
    """The layers' other inputs (masks, position embeddings, biases), by name."""
    calls: tuple[Call, ...]
    """How the model calls each layer."""
    decoder_calls: tuple[Call, ...] = ()
    """The same for the decoder of an encoder-decoder model."""


class Anatomy:
    """The parts of an unmodified `transformers` model. Its attention is switched to SDPA.

    Args:
        model: the model.
        at_tokens: whether a prompt at the input joins the token embeddings instead of the first layer's input. Only
            families with an ``entrance`` make a difference.

    Raises:
        UsageError: if the architecture is not supported.
    """

    def __init__(self, model: PreTrainedModel, at_tokens: bool) -> None:
        self.model: Any = model
        self.family = family = family_of(model)
        model.set_attn_implementation(NAME)
        model.config.use_cache = False
        self._text: Any = model.get_encoder() if family.kind == "seq2seq" else model.base_model
        layers = family.layers
        self.layers: list[nn.Module] = (
            list(self._at(layers)) if isinstance(layers, str) else [self._at(path) for path in layers(model)]
        )
        self.entrance = family.entrance(model) if family.entrance is not None and at_tokens else None
        self.encoder_head = [self._at(path) for path in family.encoder_head]
        self.decoder_layers: list[nn.Module] = list(self._at(family.decoder_layers)) if family.decoder_layers else []
        self.head = self._head()
        names = {name for name, _ in model.named_modules()}
        self._embeddings: list[nn.Module] = [self._at(path) for path in family.embeddings if path in names]

    def label_rows(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the vocabulary matrix's rows [C, E] and biases [C] for token ids [C]."""
        rows, bias = self.family.label_rows(self.model, ids.to(self.device))
        return rows, rows.new_zeros(len(rows)) if bias is None else bias

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = self.model.device
        return device

    def decoder_input_ids(self, examples: Examples) -> Tensor | None:
        """Return the decoder's tokens [N, T], cut after the last answer position; T is at least 2.

        Raises:
            ShapeError: if they are missing and the family has no rule to derive them, or if the model has no decoder.
        """
        ids = examples.decoder_input_ids
        if self.family.kind != "seq2seq":
            if ids is not None:
                raise ShapeError(f"{self.family.name} takes no decoder_input_ids: it is no encoder-decoder model.")
            return None
        if ids is None:
            if self.family.decoder_inputs is None:
                raise ShapeError(f"{self.family.name} needs decoder_input_ids, such as (pad, <extra_id_0>) for T5.")
            ids = self.family.decoder_inputs(self.model, examples.input_ids)
        length = max(2, int(examples.answer_position.max()) + 1)
        return torch.cat([ids, ids[:, -1:]], dim=1)[:, :length]

    def record(self, ids: Tensor, mask: Tensor, before: int, decoder_ids: Tensor | None = None) -> Recorded:
        """Run the model on texts and record the inputs of its layers.

        Args:
            ids: [N, S], the texts.
            mask: [N, S], 1 for tokens and 0 for padding.
            before: the number of prompt tokens before each text.
            decoder_ids: [N, T], the decoder's tokens; encoder-decoder models only.
        """
        ids, mask = ids.to(self.device), mask.to(self.device)
        if self.family.kind == "decoder":
            mask = torch.ones_like(mask)  # padding follows the text, and causal attention does not look ahead
        text = self._record_text(ids, mask)
        embedded = text.entered if self.entrance is None else self._text.get_input_embeddings()(ids)
        if before:
            ids = torch.cat([ids[:, :1].expand(-1, before), ids], dim=1)
            mask = torch.cat([torch.ones_like(ids[:, :before]), mask], dim=1)
            text = self._record_text(ids, mask, embedded.new_zeros(*ids.shape, embedded.shape[-1]))
        if not self.decoder_layers:
            return Recorded(embedded, text.tensors, text.calls)
        assert decoder_ids is not None
        decoder = self._record_decoder(decoder_ids.to(self.device), text.entered, mask)
        tensors = text.tensors | decoder.tensors | {DECODER_STATES: decoder.entered}
        return Recorded(embedded, tensors, text.calls, decoder.calls)

    def _record_text(self, ids: Tensor, mask: Tensor, embedded: Tensor | None = None) -> Recording:
        """Record the layers that prompts enter; ``embedded`` replaces the model's own embeddings."""
        with ExitStack() as stack:
            for module in [] if embedded is None else self._embeddings:
                stack.enter_context(replaced(module, lambda *_, **__: embedded))
            return record(
                lambda: self._text(input_ids=ids, attention_mask=mask), self.layers, chained=self.family.chained
            )

    def _record_decoder(self, ids: Tensor, memory: Tensor, mask: Tensor) -> Recording:
        """Record the decoder of an encoder-decoder model; ``memory`` stands in for the encoder's output."""
        run = self.model.get_decoder()
        return record(
            lambda: run(input_ids=ids, encoder_hidden_states=memory, encoder_attention_mask=mask, use_cache=False),
            self.decoder_layers,
            given={ENCODER_STATES: memory},
            prefix="decoder_",
            chained=self.family.chained,
        )

    def _head(self) -> Sequence[nn.Module]:
        """Return the modules between the last layer and the vocabulary matrix."""
        paths = self.family.head if isinstance(self.family.head, tuple) else self.family.head(self.model)
        return [without(self._at(path), self.model.get_output_embeddings()) for path in paths]

    def _at(self, path: str) -> Any:
        return self.model.get_submodule(path)
