"""A Hugging Face model as a chain of stages."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .anatomy import Anatomy, Recorded
from .errors import ShapeError, UsageError
from .examples import Examples
from .families import Family
from .loading import load_config as load_config
from .loading import load_model as load_model
from .packed_attention import KERNELS
from .packing import Packing, pack_recorded
from .plan import Plan
from .prefix import can_split, split
from .prompts import MODES, Join, Mode
from .stages import Stage
from .texts import CAT_INDEX, PROMPT_INDEX, TOKEN_INDEX, Axes, Texts, cat_index, prompt_index

Cuts = Literal["input", "layers"]
CUTS: tuple[Cuts, ...] = ("input", "layers")


@dataclass(frozen=True, eq=False)
class Encoded:
    """One batch of examples as a stage chain takes it."""

    hidden: Tensor
    """[1, N, S, H] float32: the embedded text, one state for all candidates; [1, 1, T, H] if texts stand in a row."""
    tensors: dict[str, Tensor]
    """What the stages take besides the hidden states and prompts, by name."""
    stages: tuple[Stage, ...]
    lengths: Tensor
    """[N] int64: real tokens per text; [1] if they stand in a row."""
    prefix: Encoded | None = None
    """The positions up to the prompt's end, [1, 1, n, H], if they are run apart from the texts that follow them."""
    row: Texts | None = None
    """How the texts stand in a row, if they do."""
    whole: Encoded | None = None
    """The same texts as a batch, if they stand in a row: what the parity gate compares with."""

    @property
    def joined_length(self) -> int:
        """How many positions the hidden states have once the prompt has joined them."""
        if self.row is not None:
            return len(self.tensors[TOKEN_INDEX])
        return self.stages[0].join.length(self.hidden.shape[2])

    def tensors_for(self, population: int) -> dict[str, Tensor]:
        """Return what the stages take besides hidden states and prompts of so many candidates, by name."""
        return self.tensors if self.row is None else self.tensors | self.row.of(population)


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
        self.mode, self.cuts, self.n_prompt_tokens = mode, cuts, n_prompt_tokens
        self.answer_only = answer_only
        self.parts = Anatomy(model, at_tokens=cuts == "input")
        """The model's parts."""
        self._plans: dict[tuple[str, ...], Plan] = {}

    @property
    def family(self) -> Family:
        """The model's row."""
        return self.parts.family

    @property
    def n_layers(self) -> int:
        """L: how many layers prompts can enter."""
        return len(self.parts.layers)

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
        """Return how prompts join the hidden states of whole texts that enter a stage."""
        if self.mode == "cat":
            return Join("cat" if stage == 0 else "add", 0, self.n_prompt_tokens)
        return Join("add", self.family.prompt_start, self.n_prompt_tokens)

    def check(self, examples: Examples) -> None:
        """Refuse examples the model cannot take.

        Raises:
            ShapeError: if a text is too short for the placeholders or too long for the model, or an id is no token.
        """
        vocabulary = self.word_embeddings.shape[0]
        for name in ("input_ids", "label_token_ids", "decoder_input_ids"):
            ids: Tensor | None = getattr(examples, name)
            if ids is not None and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
                raise ShapeError(f"{name} holds {int(ids.max())}, but the vocabulary has {vocabulary} rows.")
        needed = self.family.prompt_start + self.n_prompt_tokens
        if self.mode == "add" and int(examples.lengths.min()) < needed:
            raise ShapeError(
                f"an example has {int(examples.lengths.min())} tokens, but add mode puts {self.n_prompt_tokens} prompt "
                f"tokens onto positions {self.family.prompt_start} to {needed - 1}: put as many placeholders there."
            )
        if int(examples.lengths.max()) > self._positions:
            raise self._too_long(examples)

    def reaches(self, length: int) -> bool:
        """Tell whether the model surely has positions for texts of this length, the prompt included."""
        return length + POSITIONS_MARGIN <= self._positions

    @property
    def _positions(self) -> float:
        """How many positions the model's configuration names; some of them may be no text's."""
        return float(getattr(self.model.config, "max_position_embeddings", math.inf))

    def shares_prefix(self, examples: Examples) -> bool:
        """Tell whether all texts begin alike up to the prompt's end, and what they begin with does not see the rest."""
        if self.family.kind != "decoder":
            return False
        if self.mode == "cat":
            return True
        n = self.family.prompt_start + self.n_prompt_tokens
        alike = bool((examples.input_ids[:, :n] == examples.input_ids[:1, :n]).all())
        return alike and int(examples.answer_position.min()) >= n

    def encode(self, examples: Examples, *, share_prefix: bool = False, kernel: str | None = None) -> Encoded:
        """Embed examples, record what the layers are given, and return the stages for them.

        The tensors stay on the model's device, float32.

        Args:
            examples: the examples.
            share_prefix: run the positions up to the prompt's end apart from the texts (see ``shares_prefix``), unless
                what the layers are given stands in the way.
            kernel: put the texts into a row and let attention run on this kernel (a row of KERNELS), unless what the
                layers are given stands in the way.

        Raises:
            ShapeError: if a text is longer than the model's position embeddings reach, or the model needs
                decoder_input_ids and has no rule to make them by, or has no decoder to give them to.
        """
        longest = examples.input_ids.shape[1]
        if kernel is not None and bool(examples.attention_mask.all()) and self.reaches(self.before + longest + 1):
            examples = examples.padded(1)  # so that there is a mask, whatever the lengths are: one graph serves all
        examples = replace(examples, decoder_input_ids=self.parts.decoder_input_ids(examples))
        recorded = self._record(examples)
        signature = tuple(recorded.tensors)
        if signature not in self._plans:
            axes, joins = self._axes(examples, recorded), [self.join(stage) for stage in range(self.n_stages)]
            self._plans[signature] = Plan(self.parts, recorded, axes, joins, self.answer_only)
        plan = self._plans[signature]
        rows, bias = self.parts.label_rows(examples.label_token_ids)
        position = examples.answer_position.to(self.parts.device)
        answer = {"answer_position": position, "label_rows": rows, "label_bias": bias}
        lengths = examples.lengths.cpu()
        if share_prefix and can_split(plan.axes):
            return self._apart(plan, recorded, answer, lengths, kernel)
        if self.family.kind != "seq2seq":
            answer["answer_position"] = position + self.before
        whole = Encoded(recorded.embedded[None], recorded.tensors | answer, plan.stages(), lengths)
        row = Texts(lengths + self.before, examples.input_ids.shape[1] + self.before)
        packed = None if kernel is None else self._packed(plan, row, recorded.tensors, kernel)
        if packed is None:
            return whole
        packing, tensors = packed
        start = self.join(1).start
        index = {PROMPT_INDEX: prompt_index(row.positions, start, self.n_prompt_tokens)}
        if self.before:
            index[CAT_INDEX] = cat_index(row.positions, self.before)
        return self._in_row(whole, row, tensors | index, plan.stages(packing))

    def _packed(
        self, plan: Plan, row: Texts, tensors: dict[str, Tensor], kernel: str
    ) -> tuple[Packing, dict[str, Tensor]] | None:
        """Return how the layers run on texts in a row and what they take there, if they and the kernel can."""
        causal = self.family.kind == "decoder"
        names = dict.fromkeys(name for call in plan.calls for name in call.names)
        found = pack_recorded(tuple(names), tensors, plan.axes, row)
        if found is None or (causal and not KERNELS[kernel].causal):
            return None
        recorded: dict[str, Axes] = {name: (None, "tokens", *[None] * (one.ndim - 2)) for name, one in found[1].items()}
        return Packing(kernel, found[0], recorded, causal), found[1]

    def _in_row(self, whole: Encoded, row: Texts, tensors: dict[str, Tensor], stages: tuple[Stage, ...]) -> Encoded:
        """Return the same texts in a row."""
        hidden = Texts(whole.lengths, whole.hidden.shape[2]).pack(whole.hidden[0])
        return Encoded(
            hidden[None, None],
            whole.tensors | row.tensors | tensors,
            stages,
            torch.tensor([len(hidden)]),
            whole.prefix,
            row,
            whole,
        )

    def _apart(
        self, plan: Plan, recorded: Recorded, answer: dict[str, Tensor], lengths: Tensor, kernel: str | None
    ) -> Encoded:
        """Encode the positions up to the prompt's end and the rest of the texts apart."""
        embedded = torch.nn.functional.pad(recorded.embedded, (0, 0, self.before, 0))
        n = self.n_prompt_tokens + (self.family.prompt_start if self.mode == "add" else 0)
        placed = n - self.before
        tensors, text_tensors = split(recorded.tensors, plan.axes, n)
        prefix = embedded[None, :1, :n]
        before, stages = plan.shared(prefix, tensors)
        texts = embedded
        if self.parts.entrance is not None:
            texts = self.parts.entrance(embedded, torch.arange(embedded.shape[1], device=embedded.device)[None])
        answer = answer | {"answer_position": answer["answer_position"] - placed}
        whole = Encoded(
            texts[None, :, n:],
            text_tensors | answer,
            stages,
            lengths - placed,
            Encoded(prefix, tensors, before, torch.tensor([n])),
        )
        row = Texts(whole.lengths, whole.hidden.shape[2], shared=n)
        packed = None if kernel is None else self._packed(plan, row, text_tensors, kernel)
        if packed is None:
            return whole
        return self._in_row(whole, row, packed[1], plan.shared(prefix, tensors, packed[0])[1])

    @property
    def before(self) -> int:
        """How many prompt tokens stand before a text."""
        return self.n_prompt_tokens if self.mode == "cat" else 0

    def _record(self, examples: Examples) -> Recorded:
        try:
            ids, mask = examples.input_ids, examples.attention_mask
            return self.parts.record(ids, mask, self.before, examples.decoder_input_ids)
        except IndexError as error:
            raise self._too_long(examples) from error

    def _too_long(self, examples: Examples) -> ShapeError:
        return ShapeError(
            f"a text of {int(examples.lengths.max())} tokens is longer than this {self.family.name} has positions for; "
            "cut it."
        )

    def _axes(self, examples: Examples, recorded: Recorded) -> dict[str, Axes]:
        """Tell what each recorded tensor's axes count, by recording one example more and longer or shorter texts."""
        more = examples.select(torch.cat([torch.arange(len(examples)), torch.tensor([0])]))
        more = more.padded(examples.input_ids.shape[1] - more.input_ids.shape[1])
        for step in (2, -2):
            grown = self._record(_resized(more, step))
            if tuple(grown.tensors) == tuple(recorded.tensors):
                break
        else:
            raise UsageError(f"{self.family.name}: what its layers are given changes with the length of every text.")
        counts = {1: "examples", step: "sequence", TARGET_STEP: "target"}
        return {
            name: tuple(counts.get(new - old) for old, new in zip(tensor.shape, grown.tensors[name].shape, strict=True))
            for name, tensor in recorded.tensors.items()
        }


POSITIONS_MARGIN = 4
"""RoBERTa's positions begin with 2, and texts are recorded 2 tokens longer to see which axes grow."""
TARGET_STEP = 3
"""By how many tokens decoder texts are lengthened: unlike any change in texts or examples."""


def _resized(examples: Examples, step: int) -> Examples:
    """Lengthen the longest texts by repeating their last column, or cut their last columns off."""
    ids, mask, decoder = examples.input_ids, examples.attention_mask, examples.decoder_input_ids
    if step > 0:
        ids, mask = _lengthened(ids, step), _lengthened(mask, step)
    else:
        ids, mask = ids[:, :step], mask[:, :step]
    decoder = None if decoder is None else _lengthened(decoder, TARGET_STEP)
    position = examples.answer_position.clamp(max=ids.shape[1] - 1) if decoder is None else examples.answer_position
    return replace(examples, input_ids=ids, attention_mask=mask, answer_position=position, decoder_input_ids=decoder)


def _lengthened(tensor: Tensor, step: int) -> Tensor:
    return torch.cat([tensor, tensor[:, -1:].expand(-1, step)], dim=1)
