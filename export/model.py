"""Cut a Hugging Face model into a chain of stages, and encode examples for it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .anatomy import Anatomy, Recorded
from .errors import ShapeError, UsageError
from .examples import Examples
from .families import Family, positions
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
    """One batch of examples, encoded for a stage chain."""

    hidden: Tensor
    """[1, N, S, H] float32: the embedded texts, the same for all candidates; [1, 1, T, H] for packed texts."""
    tensors: dict[str, Tensor]
    """The stages' inputs besides hidden states and prompts, by name."""
    stages: tuple[Stage, ...]
    lengths: Tensor
    """[N] int64: real tokens per text; [1] for packed texts."""
    prefix: Encoded | None = None
    """The positions up to the prompt's end, [1, 1, n, H], if all texts share them."""
    row: Texts | None = None
    """The layout of packed texts; None for padded texts."""
    whole: Encoded | None = None
    """The padded form of packed texts: the parity gate's reference."""

    @property
    def joined_length(self) -> int:
        """The number of positions of the hidden states after the prompt has joined."""
        if self.row is not None:
            return len(self.tensors[TOKEN_INDEX])
        return self.stages[0].join.length(self.hidden.shape[2])

    def tensors_for(self, population: int) -> dict[str, Tensor]:
        """Return the stages' inputs besides hidden states and prompts for a number of candidates, by name."""
        return self.tensors if self.row is None else self.tensors | self.row.of(population)


class StagedModel:
    """A frozen model, cut into stages where prompts enter.

    Args:
        model: an unmodified `transformers` model; its attention is switched to SDPA.
        mode: "add" adds prompts to placeholder positions, "cat" puts them before the text.
        n_prompt_tokens: n.
        cuts: "input" for one stage with a prompt at its input (BBT), "layers" for one stage per layer (BBTv2).
        answer_only: whether the last layer runs queries and feed-forward block for the answer position only.

    Raises:
        UsageError: if the architecture, mode or cuts are unknown.
    """

    def __init__(
        self, model: PreTrainedModel, mode: Mode, n_prompt_tokens: int, cuts: Cuts, *, answer_only: bool = True
    ) -> None:
        """Check the options and locate the model's parts."""
        for name, value, known in (("mode", mode, MODES), ("cuts", cuts, CUTS)):
            if value not in known:
                raise UsageError(f"{name} is {value!r}, but it must be one of {', '.join(known)}.")
        if n_prompt_tokens < 1:
            raise UsageError(f"n_prompt_tokens is {n_prompt_tokens}, but a prompt has at least one token.")
        self.model = model
        self.mode, self.cuts, self.n_prompt_tokens = mode, cuts, n_prompt_tokens
        self.answer_only = answer_only
        self.before = n_prompt_tokens if mode == "cat" else 0
        """The number of prompt tokens before a text."""
        self.parts = Anatomy(model, at_tokens=cuts == "input")
        self.family: Family = self.parts.family
        self.n_layers = len(self.parts.layers)
        """L: the number of layers that prompts can enter, at either cut."""
        self.n_stages = self.n_layers if cuts == "layers" else 1
        """The length of the chain."""
        self.hidden_size = int(model.config.hidden_size)
        """H: the width of the hidden states and of a prompt's tokens."""
        self._plans: dict[tuple[str, ...], Plan] = {}

    @property
    def word_embeddings(self) -> Tensor:
        """[V, E]: the model's word embeddings."""
        embeddings: Any = self.model.get_input_embeddings()
        weight: Tensor = embeddings.weight
        return weight

    @cached_property
    def fingerprint(self) -> str:
        """The digest of the architecture, its configuration and all weights."""
        config = {name: its for name, its in self.model.config.to_diff_dict().items() if name not in UNSHAPING}
        digest = hashlib.sha256(json.dumps([type(self.model).__name__, config], sort_keys=True, default=str).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name}{tensor.dtype}{list(tensor.shape)}".encode())
            digest.update(tensor.detach().contiguous().cpu().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def join(self, stage: int) -> Join:
        """Return the join of prompts with the hidden states of padded texts at a stage."""
        if self.mode == "cat":
            return Join("cat" if stage == 0 else "add", 0, self.n_prompt_tokens)
        return Join("add", self.family.prompt_start, self.n_prompt_tokens)

    def check(self, examples: Examples) -> None:
        """Check that the model can take these examples.

        Raises:
            ShapeError: if a text is too short for the placeholders or too long for the model, or an id is not in the
                vocabulary.
        """
        vocabulary = self.word_embeddings.shape[0]
        for name in ("input_ids", "label_token_ids", "decoder_input_ids"):
            ids: Tensor | None = getattr(examples, name)
            for one in () if ids is None else (int(ids.min()), int(ids.max())):
                if not 0 <= one < vocabulary:
                    raise ShapeError(f"{name} holds {one}, but the vocabulary has {vocabulary} rows.")
        needed = self.family.prompt_start + self.n_prompt_tokens
        if self.mode == "add" and int(examples.lengths.min()) < needed:
            raise ShapeError(
                f"an example has {int(examples.lengths.min())} tokens, but add mode adds {self.n_prompt_tokens} prompt "
                f"tokens to positions {self.family.prompt_start} to {needed - 1}. Put as many placeholders there."
            )
        if int(examples.lengths.max()) + self._placed > positions(self.model.config):
            raise self._too_long(examples)

    def reaches(self, length: int) -> bool:
        """Return whether the model certainly has positions for texts of this length, the prompt included."""
        return length + POSITIONS_MARGIN <= positions(self.model.config)

    @property
    def _placed(self) -> int:
        """The number of prompt tokens that take positions from the text."""
        return 0 if self.family.kind == "masked" else self.before

    def shares_prefix(self, examples: Examples) -> bool:
        """Return whether the model is causal and all texts have the same tokens up to the prompt's end."""
        if self.family.kind != "decoder":
            return False
        if self.mode == "cat":
            return True
        n = self.family.prompt_start + self.n_prompt_tokens
        alike = bool((examples.input_ids[:, :n] == examples.input_ids[:1, :n]).all())
        return alike and int(examples.answer_position.min()) >= n

    def encode(self, examples: Examples, *, share_prefix: bool = False, kernel: str | None = None) -> Encoded:
        """Embed examples, record the layers' other inputs, and return both with the stages that take them.

        The tensors are float32 on the model's device.

        Args:
            examples: the examples.
            share_prefix: run the positions up to the prompt's end once for all texts (see ``shares_prefix``), if the
                recorded tensors allow it.
            kernel: pack the texts and run attention on this row of KERNELS, if the recorded tensors allow it.

        Raises:
            ShapeError: if a text is longer than the model's position embeddings, or decoder_input_ids are missing or
                given to a model without a decoder.
        """
        longest = examples.input_ids.shape[1]
        if kernel is not None and bool(examples.attention_mask.all()) and self.reaches(self.before + longest + 1):
            examples = examples.padded(1)  # forces a mask at any length, so one graph serves all
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
        return self._packed(whole, row, plan, recorded.tensors, kernel, plan.stages)

    def _packed(
        self,
        whole: Encoded,
        row: Texts,
        plan: Plan,
        recorded: dict[str, Tensor],
        kernel: str | None,
        stages: Callable[[Packing], tuple[Stage, ...]],
    ) -> Encoded:
        """Return packed texts in the place of padded ones, if the layers and the kernel can take them."""
        causal = self.family.kind == "decoder"
        if kernel is None or (causal and not KERNELS[kernel].causal):
            return whole
        names = dict.fromkeys(name for call in plan.calls for name in call.names)
        found = pack_recorded(tuple(names), recorded, plan.axes, row)
        if found is None:
            return whole
        replaced, tensors = found
        axes: dict[str, Axes] = {name: (None, "tokens", *[None] * (one.ndim - 2)) for name, one in tensors.items()}
        if whole.prefix is None:
            tensors[PROMPT_INDEX] = prompt_index(row.positions, self.join(1).start, self.n_prompt_tokens)
            if self.before:
                tensors[CAT_INDEX] = cat_index(row.positions, self.before)
        hidden = Texts(whole.lengths, whole.hidden.shape[2]).pack(whole.hidden[0])
        return replace(
            whole,
            hidden=hidden[None, None],
            tensors=whole.tensors | row.tensors | tensors,
            stages=stages(Packing(kernel, replaced, axes, causal)),
            lengths=torch.tensor([len(hidden)]),
            row=row,
            whole=whole,
        )

    def _apart(
        self, plan: Plan, recorded: Recorded, answer: dict[str, Tensor], lengths: Tensor, kernel: str | None
    ) -> Encoded:
        """Encode the positions up to the prompt's end and the rest of the texts separately."""
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
        return self._packed(whole, row, plan, text_tensors, kernel, lambda how: plan.shared(prefix, tensors, how)[1])

    def _record(self, examples: Examples) -> Recorded:
        try:
            ids, mask = examples.input_ids, examples.attention_mask
            return self.parts.record(ids, mask, self.before, examples.decoder_input_ids)
        except IndexError as error:
            raise self._too_long(examples) from error

    def _too_long(self, examples: Examples) -> ShapeError:
        and_prompt = f" and its prompt {self._placed}" if self._placed else ""
        return ShapeError(
            f"a text has {int(examples.lengths.max())} tokens{and_prompt}, but this {self.family.name} "
            "has fewer positions. Truncate it."
        )

    def _axes(self, examples: Examples, recorded: Recorded) -> dict[str, Axes]:
        """Determine the axes of recorded tensors by recording with one more example and longer or shorter texts."""
        more = examples.select(torch.cat([torch.arange(len(examples)), torch.tensor([0])]))
        more = more.padded(examples.input_ids.shape[1] - more.input_ids.shape[1])
        room = positions(self.model.config)
        decoder = examples.decoder_input_ids
        target = TARGET_STEP if decoder is None or decoder.shape[1] + TARGET_STEP <= room else -TARGET_STEP
        for step in (2, -2) if self.reaches(examples.input_ids.shape[1] + self.before) else (-2,):
            grown = self._record(_resized(more, step, target))
            if tuple(grown.tensors) == tuple(recorded.tensors):
                break
        else:
            raise UsageError(f"{self.family.name} is not supported: its layers' inputs change with the texts' length.")
        counts = {1: "examples", step: "sequence", target: "target"}
        return {
            name: tuple(counts.get(new - old) for old, new in zip(tensor.shape, grown.tensors[name].shape, strict=True))
            for name, tensor in recorded.tensors.items()
        }


POSITIONS_MARGIN = 2
"""Texts are recorded with 2 more tokens to see which axes grow."""
UNSHAPING = ("_name_or_path", "architectures", "dtype", "transformers_version", "use_cache")
"""Entries of a configuration that do not change a model's answers."""
TARGET_STEP = 3
"""How many tokens are appended to decoder texts, or removed; it differs from all other size changes."""


def _resized(examples: Examples, step: int, target: int) -> Examples:
    """Lengthen the longest texts by repeating their last column, or shorten all; padding stays padding."""
    ids, mask, decoder = examples.input_ids, examples.attention_mask, examples.decoder_input_ids
    if step > 0:
        ids, mask = _lengthened(ids, step), _lengthened(mask, step)
    else:
        ids, mask = ids[:, :step], mask[:, -step:]
    if decoder is not None:
        decoder = _lengthened(decoder, target) if target > 0 else decoder[:, :target]
    position = examples.answer_position.clamp(max=(ids if decoder is None else decoder).shape[1] - 1)
    return replace(examples, input_ids=ids, attention_mask=mask, answer_position=position, decoder_input_ids=decoder)


def _lengthened(tensor: Tensor, step: int) -> Tensor:
    return torch.cat([tensor, tensor[:, -1:].expand(-1, step)], dim=1)
