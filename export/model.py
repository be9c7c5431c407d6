"""A Hugging Face model, ready to be cut into stages."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from .attention import NAME
from .errors import ShapeError, UsageError
from .examples import Examples
from .families import Family, Kind, family_of
from .prompts import MODES, Join, Mode
from .recording import Recording, record
from .stages import Axes, Stage, without

Cuts = Literal["input", "layers"]
CUTS: tuple[Cuts, ...] = ("input", "layers")

_AUTO_CLASSES: dict[Kind, str] = {
    "masked": "AutoModelForMaskedLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "decoder": "AutoModelForCausalLM",
}

logger = logging.getLogger(__name__)


def load_config(source: str | Path) -> PreTrainedConfig:
    """Load a model's configuration, without its weights, from the hub or a folder.

    Raises:
        UsageError: if there is no such model.
    """
    try:
        config: PreTrainedConfig = transformers.AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"no model {str(source)!r}: it is neither a folder with a config.json nor a hub model that can be "
            f"reached ({type(error).__name__}: {str(error).splitlines()[0]}). Give a folder, or check the id and "
            "the network."
        ) from error
    return config


def load_model(source: str | Path | PreTrainedModel) -> PreTrainedModel:
    """Load a model in fp32 from the hub or a folder; a loaded one is put into evaluation mode.

    Raises:
        UsageError: if there is no such model, or its architecture is not supported.
    """
    model: Any = source
    if not isinstance(source, PreTrainedModel):
        auto: Any = getattr(transformers, _AUTO_CLASSES[family_of(load_config(source)).kind])
        model = auto.from_pretrained(source, dtype=torch.float32)
    family_of(model)
    loaded: PreTrainedModel = model.eval().requires_grad_(False)
    return loaded


@dataclass(frozen=True, eq=False)
class Encoded:
    """One batch of examples as a stage chain takes it."""

    hidden: Tensor
    """[1, N, S, H] float32: the embedded text, one state for all candidates."""
    tensors: dict[str, Tensor]
    """What the stages take besides the hidden states and prompts, by name."""
    stages: tuple[Stage, ...]
    lengths: Tensor
    """[N] int64: real tokens per text."""


class StagedModel:
    """A frozen model cut where prompts enter.

    Args:
        model: an unmodified `transformers` model; its attention is switched to SDPA.
        mode: "add" puts prompts onto placeholder positions, "cat" before the text.
        n_prompt_tokens: n.
        cuts: "input" for one stage with a prompt at its input (BBT), "layers" for one stage per layer (BBTv2).
        answer_only: whether the last layer runs queries and feed-forward block for the answer position only.

    Raises:
        UsageError: if the architecture, mode or cuts are unknown.
    """

    def __init__(
        self, model: PreTrainedModel, mode: Mode, n_prompt_tokens: int, cuts: Cuts, *, answer_only: bool = True
    ) -> None:
        """Find the family's parts in the model."""
        for name, value, known in (("mode", mode, MODES), ("cuts", cuts, CUTS)):
            if value not in known:
                raise UsageError(f"{name} is {value!r}, but it must be one of {', '.join(known)}.")
        if n_prompt_tokens < 1:
            raise UsageError(f"n_prompt_tokens is {n_prompt_tokens}, but a prompt has at least one token.")
        self.model = model
        self.family: Family = family_of(model)
        self.mode, self.cuts, self.n_prompt_tokens = mode, cuts, n_prompt_tokens
        self.answer_only = answer_only
        model.set_attn_implementation(NAME)
        model.config.use_cache = False
        self._layers: list[nn.Module] = list(_at(model, self.family.layers))
        self._embeddings = _at(model, self.family.embeddings)
        self._output_embeddings: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        self._plans: dict[tuple[str, ...], tuple[Stage, ...]] = {}

    @property
    def n_layers(self) -> int:
        """L: how many layers prompts can enter."""
        return len(self._layers)

    @property
    def hidden_size(self) -> int:
        """H: the width of the hidden states and of a prompt's tokens."""
        return int(self.model.config.hidden_size)

    @property
    def n_stages(self) -> int:
        """How many stages the chain has."""
        return self.n_layers if self.cuts == "layers" else 1

    @property
    def word_embeddings(self) -> Tensor:
        """[V, E]: the model's word embeddings."""
        embeddings: Any = self.model.get_input_embeddings()
        weight: Tensor = embeddings.weight
        return weight

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the architecture and of all weights."""
        digest = hashlib.sha256(type(self.model).__name__.encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name}{tensor.dtype}{list(tensor.shape)}".encode())
            digest.update(tensor.detach().contiguous().cpu().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def join(self, stage: int) -> Join:
        """Return how prompts join the hidden states that enter a stage."""
        if self.mode == "cat":
            return Join("cat" if stage == 0 else "add", 0, self.n_prompt_tokens)
        return Join("add", self.family.prompt_start, self.n_prompt_tokens)

    def check(self, examples: Examples) -> None:
        """Refuse examples the model cannot take.

        Raises:
            ShapeError: if a text is too short for the placeholders or too long for the model, or an id is no token.
        """
        vocabulary = self.word_embeddings.shape[0]
        for name in ("input_ids", "label_token_ids"):
            ids = getattr(examples, name)
            if int(ids.min()) < 0 or int(ids.max()) >= vocabulary:
                raise ShapeError(f"{name} holds {int(ids.max())}, but the vocabulary has {vocabulary} rows.")
        needed = self.family.prompt_start + self.n_prompt_tokens
        if self.mode == "add" and int(examples.lengths.min()) < needed:
            raise ShapeError(
                f"an example has {int(examples.lengths.min())} tokens, but add mode puts {self.n_prompt_tokens} prompt "
                f"tokens onto positions {self.family.prompt_start} to {needed - 1}: put as many placeholders there."
            )

    def encode(self, examples: Examples) -> Encoded:
        """Embed examples, record what the layers are given, and return the stages for them.

        The tensors stay on the model's device, float32.
        """
        recording = self._record(examples)
        signature = tuple(recording.tensors)
        if signature not in self._plans:
            self._plans[signature] = self._plan(examples, recording)
        shift = self.n_prompt_tokens if self.mode == "cat" else 0
        output = self._output_embeddings
        rows = output.weight[examples.label_token_ids]
        bias = getattr(output, "bias", None)
        tensors = recording.tensors | {
            "answer_position": examples.answer_position + shift,
            "label_rows": rows,
            "label_bias": rows.new_zeros(len(rows)) if bias is None else bias[examples.label_token_ids],
        }
        return Encoded(recording.embedded[None], tensors, self._plans[signature], examples.lengths)

    def _record(self, examples: Examples) -> Recording:
        recording = self._run(examples)
        if self.mode == "add":
            return recording
        before = examples.input_ids[:, :1].expand(-1, self.n_prompt_tokens)
        longer = replace(
            examples,
            input_ids=torch.cat([before, examples.input_ids], dim=1),
            attention_mask=torch.cat([torch.ones_like(before), examples.attention_mask], dim=1),
        )
        blank = recording.embedded.new_zeros(*longer.input_ids.shape, recording.embedded.shape[-1])
        return replace(self._run(longer, blank), embedded=recording.embedded)

    def _run(self, examples: Examples, embedded: Tensor | None = None) -> Recording:
        base: Callable[..., Any] = self.model.base_model
        device = self.word_embeddings.device
        ids, mask = examples.input_ids.to(device), examples.attention_mask.to(device)
        return record(lambda: base(input_ids=ids, attention_mask=mask), self._embeddings, self._layers, embedded)

    def _plan(self, examples: Examples, recording: Recording) -> tuple[Stage, ...]:
        """Make the stages for examples that are recorded like these."""
        axes = self._axes(examples, recording)
        head = [without(_at(self.model, path), self._output_embeddings) for path in self.family.head]
        parts = [range(i, i + 1) for i in range(self.n_layers)] if self.cuts == "layers" else [range(self.n_layers)]
        return tuple(
            Stage(
                [self._layers[i] for i in part],
                [recording.calls[i] for i in part],
                axes,
                head if part[-1] == self.n_layers - 1 else None,
                causal=self.family.kind == "decoder",
                answer_only=self.answer_only,
            )
            for part in parts
        )

    def _axes(self, examples: Examples, recording: Recording) -> dict[str, Axes]:
        """Tell what each recorded tensor's axes count, by recording one example and two tokens more."""
        rows = torch.cat([torch.arange(len(examples)), torch.tensor([0])])
        for step in (2, -2):
            grown = self._record(_resized(examples.select(rows), step))
            if tuple(grown.tensors) == tuple(recording.tensors):
                break
        else:
            raise UsageError(f"{self.family.name}: what its layers are given changes with the length of every text.")
        counts = {1: "examples", step: "sequence"}
        return {
            name: tuple(counts.get(new - old) for old, new in zip(tensor.shape, grown.tensors[name].shape, strict=True))
            for name, tensor in recording.tensors.items()
        }


def _resized(examples: Examples, step: int) -> Examples:
    """Lengthen the longest texts by repeating their last column, or cut the last columns off."""
    ids, mask = examples.input_ids, examples.attention_mask
    if step > 0:
        ids = torch.cat([ids, ids[:, -1:].expand(-1, step)], dim=1)
        mask = torch.cat([mask, mask[:, -1:].expand(-1, step)], dim=1)
    else:
        ids, mask = ids[:, :step], mask[:, :step]
    position = examples.answer_position.clamp(max=ids.shape[1] - 1)
    return replace(examples, input_ids=ids, attention_mask=mask, answer_position=position)


def _at(model: nn.Module, path: str) -> Any:
    """Return the submodule at a dotted path."""
    return model.get_submodule(path)
