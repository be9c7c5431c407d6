"""The few-shot examples of a run, as token ids."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .errors import ShapeError


@dataclass(frozen=True, eq=False)
class Examples:
    """N encoded texts and the label words of their classes.

    Args:
        input_ids: [N, S] int64, right-padded; in add mode they include the n placeholder tokens.
        attention_mask: [N, S] int64, 1 for tokens and 0 for padding.
        answer_position: [N] int64, where the answer is read: the mask token, the last real token, or the decoder's
            position. It indexes ``input_ids`` (or ``decoder_input_ids``) as given; the engine adds cat mode's shift.
        label_token_ids: [W] int64, the vocabulary rows of the label words; one per class without ``label_classes``.
        decoder_input_ids: [N, T] int64, encoder-decoder models only; None if the family derives them from the text.
        label_classes: [W] int64, the class 0 .. C-1 of each label word; None for one word per class.
        label_bias: [W] float32, added to the logits of the label words; None for no bias.

    Raises:
        ShapeError: if the tensors do not fit each other.
    """

    input_ids: Tensor
    attention_mask: Tensor
    answer_position: Tensor
    label_token_ids: Tensor
    decoder_input_ids: Tensor | None = None
    label_classes: Tensor | None = None
    label_bias: Tensor | None = None

    def __post_init__(self) -> None:
        """Check the shapes."""
        if self.input_ids.ndim != 2 or 0 in self.input_ids.shape:
            raise ShapeError(f"input_ids must be [N, S] with N, S > 0, not {list(self.input_ids.shape)}.")
        n, length = self.input_ids.shape
        if self.attention_mask.shape != self.input_ids.shape:
            raise ShapeError(
                f"attention_mask is {list(self.attention_mask.shape)}, but input_ids is {[n, length]}: give one mask "
                "value per token."
            )
        text = torch.arange(length, device=self.attention_mask.device) < self.lengths.clamp(min=1)[:, None]
        if not torch.equal(self.attention_mask, text.to(self.attention_mask.dtype)):
            raise ShapeError("attention_mask is not right-padded: each row must be ones, then zeros.")
        if self.answer_position.shape != (n,):
            raise ShapeError(f"answer_position is {list(self.answer_position.shape)}, but there are {n} examples.")
        read = self.input_ids if self.decoder_input_ids is None else self.decoder_input_ids
        if read.ndim != 2 or len(read) != n or 0 in read.shape:
            raise ShapeError(f"decoder_input_ids must be [N, T] with N = {n} and T > 0, not {list(read.shape)}.")
        if int(self.answer_position.min()) < 0 or int(self.answer_position.max()) >= read.shape[1]:
            raise ShapeError(f"answer_position must lie within 0 to {read.shape[1] - 1}, the positions of the text.")
        if self.label_token_ids.ndim != 1 or self.label_token_ids.numel() < 1:
            raise ShapeError(f"label_token_ids must be [W], not {list(self.label_token_ids.shape)}.")
        for name in ("label_classes", "label_bias"):
            of_words: Tensor | None = getattr(self, name)
            if of_words is not None and of_words.shape != self.label_token_ids.shape:
                raise ShapeError(
                    f"{name} is {list(of_words.shape)}, but there are {len(self.label_token_ids)} label words."
                )
        if self.label_classes is not None:
            classes = set(self.label_classes.tolist())
            if classes != set(range(len(classes))):
                raise ShapeError("label_classes must name every class from 0 on.")

    def __len__(self) -> int:
        """Return N."""
        return self.input_ids.shape[0]

    @property
    def words_of_classes(self) -> list[list[int]]:
        """The indices of each class's label words."""
        if self.label_classes is None:
            return [[word] for word in range(len(self.label_token_ids))]
        classes = self.label_classes.tolist()
        return [[word for word, its in enumerate(classes) if its == c] for c in range(max(classes) + 1)]

    @property
    def lengths(self) -> Tensor:
        """[N] int64: real tokens per example."""
        return self.attention_mask.sum(dim=1)

    def select(self, rows: Tensor) -> Examples:
        """Return the examples of these rows ([M] int64), truncated to the longest of them."""
        length = int(self.lengths[rows].max())
        decoder = None if self.decoder_input_ids is None else self.decoder_input_ids[rows]
        return replace(
            self,
            input_ids=self.input_ids[rows, :length],
            attention_mask=self.attention_mask[rows, :length],
            answer_position=self.answer_position[rows],
            decoder_input_ids=decoder,
        )

    def padded(self, columns: int) -> Examples:
        """Return the same examples with additional columns of padding."""
        ids = torch.cat([self.input_ids, self.input_ids[:, -1:].expand(-1, columns)], dim=1)
        mask = torch.nn.functional.pad(self.attention_mask, (0, columns))
        return replace(self, input_ids=ids, attention_mask=mask)

    def to(self, device: torch.device | str) -> Examples:
        """Return the same examples on a device."""
        return replace(self, **{name: tensor.to(device) for name, tensor in self.given.items()})

    @property
    def given(self) -> dict[str, Tensor]:
        """The tensors that are there, by name."""
        return {name: tensor for name, tensor in vars(self).items() if tensor is not None}

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """The tensors that are there as arrays on the host, contiguous, to be sent."""
        return {name: np.ascontiguousarray(tensor.cpu().numpy()) for name, tensor in self.given.items()}
