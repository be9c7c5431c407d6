"""Words that a model's own answers suggest."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from bbt_fast.tuner.tasks.label_words import label_word_ids
from bbt_fast.tuner.tasks.task import Task, load_task
from bbt_fast.tuner.tasks.word_choice import CHOSEN, calibration, with_chosen_words

LABELS = torch.tensor([0, 1, 0, 1])


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_a_class_gets_whole_words_that_its_texts_make_likelier(
    kind: str, make_tokenizer: Callable[[str], PreTrainedTokenizerFast]
) -> None:
    tokenizer, task = make_tokenizer(kind), load_task("demo")
    space = "Ġ" if kind == "bpe" else ""
    token = {word: tokenizer.convert_tokens_to_ids(space + word) for word in ("sports", "world", "human", "no", "was")}
    assert len(set(token.values())) == 5
    logits = torch.zeros(4, len(tokenizer))
    for rows, word, more in (
        (LABELS == 0, "sports", 3.0), (LABELS == 0, "world", 5.0), (LABELS == 1, "human", 4.0),
        (LABELS == 0, "no", 2.0), (LABELS == 1, "no", 2.5), (LABELS >= 0, "was", 9.0),
    ):  # fmt: skip
        logits[rows, token[word]] = more
    (bad,), (great,) = label_word_ids(tokenizer, task, "masked")
    logits[LABELS == 0, great] = 8.0  # a class's own word is no other's, whatever the model says
    logits[LABELS == 1, tokenizer.mask_token_id] = 9.0
    found = with_chosen_words(task, "masked", tokenizer, logits, LABELS)
    assert found.words("masked")[0][:3] == ("bad", "world", "sports")
    assert found.words("masked")[1][:3] == ("great", "human", "no")
    assert all(len(words) <= 1 + CHOSEN for words in found.words("masked"))
    assert (found.use_words, found.templates) == ("all", task.templates)
    ids = label_word_ids(tokenizer, found, "masked")
    assert ids[0][:3] == (bad, token["world"], token["sports"])
    assert len({i for words in ids for i in words}) == sum(map(len, ids))


def test_all_words_count_that_are_one_token(make_tokenizer: Callable[[str], PreTrainedTokenizerFast]) -> None:
    tokenizer = make_tokenizer("wordpiece")
    words = {"masked": (("bad", "Bad", "badunheardof"), ("great", "human"))}
    task = Task("t", ("bad", "good"), {"masked": "{text} {mask}"}, words)  # type: ignore[arg-type]
    bad, great, human = (tokenizer.convert_tokens_to_ids(word) for word in ("bad", "great", "human"))
    assert label_word_ids(tokenizer, task, "masked") == ((bad,), (great,))
    both = Task("t", ("bad", "good"), {"masked": "{text} {mask}"}, words, use_words="all")  # type: ignore[arg-type]
    assert label_word_ids(tokenizer, both, "masked") == ((bad,), (great, human))


def test_a_word_that_differs_steadily_comes_before_one_that_differs_more_on_a_few_texts(
    make_tokenizer: Callable[[str], PreTrainedTokenizerFast],
) -> None:
    tokenizer, task = make_tokenizer("wordpiece"), load_task("demo")
    logits = torch.zeros(4, len(tokenizer))
    world, sports = tokenizer.convert_tokens_to_ids(["world", "sports"])
    logits[LABELS == 0, world] = torch.tensor([10.0, 0.0])
    logits[LABELS == 0, sports] = 4.0
    found = with_chosen_words(task, "masked", tokenizer, logits, LABELS)
    assert found.words("masked")[0][:3] == ("bad", "sports", "world")


def test_calibrated_words_are_equally_likely_though_the_classes_differ_in_size() -> None:
    labels = torch.tensor([0, 1, 0, 0])
    logits = torch.tensor([[1.0, 5.0, -2.0], [3.0, 1.0, -2.0], [2.0, 4.0, -2.0], [3.0, 3.0, -2.0]])
    assert calibration(logits, labels) == [-2.5, -2.5, 2.0]
