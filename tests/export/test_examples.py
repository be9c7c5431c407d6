"""Examples whose tensors do not fit each other are refused when they are made."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from bbt_fast.export.errors import ShapeError
from bbt_fast.export.examples import Examples

WHOLE = {
    "input_ids": torch.tensor([[2, 7, 9, 3], [2, 8, 3, 1]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
    "answer_position": torch.tensor([2, 1]),
    "label_token_ids": torch.tensor([5, 6, 7]),
}
OF_DECODER = {"decoder_input_ids": torch.tensor([[0, 4], [0, 4]]), "answer_position": torch.tensor([1, 0])}

NOT_PADDED = "attention_mask is not right-padded: each row must be ones, then zeros."
MALFORMED: dict[str, tuple[dict[str, Tensor], str]] = {
    "ids of one text": (
        {"input_ids": torch.tensor([2, 7, 3])},
        "input_ids must be [N, S] with N, S > 0, not [3].",
    ),
    "no text": (
        {"input_ids": torch.zeros(0, 4, dtype=torch.long)},
        "input_ids must be [N, S] with N, S > 0, not [0, 4].",
    ),
    "texts of no token": (
        {"input_ids": torch.zeros(2, 0, dtype=torch.long)},
        "input_ids must be [N, S] with N, S > 0, not [2, 0].",
    ),
    "a shorter mask": (
        {"attention_mask": torch.ones(2, 3, dtype=torch.long)},
        "attention_mask is [2, 3], but input_ids is [2, 4]: give one mask value per token.",
    ),
    "padding on the left": ({"attention_mask": torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])}, NOT_PADDED),
    "padding within a text": ({"attention_mask": torch.tensor([[1, 0, 1, 1], [1, 1, 1, 0]])}, NOT_PADDED),
    "a text of padding": ({"attention_mask": torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0]])}, NOT_PADDED),
    "a mask of other numbers": ({"attention_mask": torch.tensor([[2, 1, 1, 0], [1, 1, 1, 0]])}, NOT_PADDED),
    "fewer answers than texts": (
        {"answer_position": torch.tensor([2])},
        "answer_position is [1], but there are 2 examples.",
    ),
    "decoder inputs of fewer texts": (
        {"decoder_input_ids": torch.tensor([[0, 4, 4, 4]])},
        "decoder_input_ids must be [N, T] with N = 2 and T > 0, not [1, 4].",
    ),
    "decoder inputs without positions": (
        {"decoder_input_ids": torch.tensor([0, 4])},
        "decoder_input_ids must be [N, T] with N = 2 and T > 0, not [2].",
    ),
    "decoder inputs of no token": (
        {"decoder_input_ids": torch.zeros(2, 0, dtype=torch.long)},
        "decoder_input_ids must be [N, T] with N = 2 and T > 0, not [2, 0].",
    ),
    "an answer before the text": (
        {"answer_position": torch.tensor([2, -1])},
        "answer_position must lie within 0 to 3, the positions of the text.",
    ),
    "an answer behind the text": (
        {"answer_position": torch.tensor([4, 1])},
        "answer_position must lie within 0 to 3, the positions of the text.",
    ),
    "an answer behind the decoder's text": (
        OF_DECODER | {"answer_position": torch.tensor([2, 0])},
        "answer_position must lie within 0 to 1, the positions of the text.",
    ),
    "no label word": (
        {"label_token_ids": torch.zeros(0, dtype=torch.long)},
        "label_token_ids must be [W], not [0].",
    ),
    "label words of two axes": (
        {"label_token_ids": torch.tensor([[5, 6, 7]])},
        "label_token_ids must be [W], not [1, 3].",
    ),
    "classes of fewer words": (
        {"label_classes": torch.tensor([0, 1])},
        "label_classes is [2], but there are 3 label words.",
    ),
    "biases of more words": ({"label_bias": torch.zeros(4)}, "label_bias is [4], but there are 3 label words."),
    "a class without words": (
        {"label_classes": torch.tensor([0, 2, 2])},
        "label_classes must name every class from 0 on.",
    ),
    "a negative class": (
        {"label_classes": torch.tensor([-1, 1, 1])},
        "label_classes must name every class from 0 on.",
    ),
}


@pytest.mark.parametrize(("changes", "message"), MALFORMED.values(), ids=MALFORMED)
def test_examples_that_do_not_fit_each_other_are_refused(changes: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ShapeError, match=f"^{re.escape(message)}$"):
        Examples(**WHOLE | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        OF_DECODER,
        {"label_classes": torch.tensor([1, 0, 1]), "label_bias": torch.zeros(3)},
        {"answer_position": torch.tensor([3, 0])},
    ],
    ids=["plain", "decoder", "words of classes", "first and last position"],
)
def test_examples_that_fit_each_other_are_taken(changes: dict[str, Tensor]) -> None:
    assert len(Examples(**WHOLE | changes)) == 2
