"""The embedded demo: its sentences, its model, and that the model is poor before tuning."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from bbt_fast.export.errors import UsageError
from bbt_fast.tuner.demo import MODEL_DIR, rows
from bbt_fast.tuner.demo.sentences import SPLIT_SIZES
from bbt_fast.tuner.tasks.task import load_task

WORDS = [word for (word,) in load_task("demo").words("masked")]
MOST_BYTES = 2 << 20
DENIAL = re.compile(r"\b(not|never|hardly|nothing|nobody could)\b")
CONTRAST = re.compile(r"although|, but|even though|despite")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(MODEL_DIR)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return AutoModelForMaskedLM.from_pretrained(MODEL_DIR).eval()


def digest_of(split: str) -> str:
    """A digest of a split's rows."""
    return hashlib.sha256(json.dumps(rows(split)).encode()).hexdigest()[:16]


def label_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return [ids[0] for ids in tokenizer([f" {word}" for word in WORDS], add_special_tokens=False)["input_ids"]]


@torch.inference_mode()
def margins(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], n_placeholders: int = 0
) -> torch.Tensor:
    """How much higher the logit of "great" is than that of "bad" at the mask, [N]."""
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    placeholders = torch.arange(1000, 1000 + n_placeholders).expand(len(texts), -1)
    ids = torch.cat([batch["input_ids"][:, :1], placeholders, batch["input_ids"][:, 1:]], dim=1)
    mask = torch.cat([torch.ones_like(placeholders), batch["attention_mask"]], dim=1)
    logits = model(ids, attention_mask=mask).logits[ids == tokenizer.mask_token_id][:, label_ids(tokenizer)]
    return logits[:, 1] - logits[:, 0]


def accuracy(margin: torch.Tensor, labels: list[int]) -> float:
    """The share of margins with the sign of their label."""
    return float(((margin > 0) == torch.tensor(labels).bool()).float().mean())


def test_the_sentences_are_those_that_the_shipped_model_was_trained_beside() -> None:
    assert {split: digest_of(split) for split in SPLIT_SIZES} == {
        "train": "e893bc1df661497e",
        "test": "cbdbed04eb643c1a",
    }


def test_a_caller_who_changes_rows_changes_only_its_own() -> None:
    rows("test")[0]["text"] = "changed"
    assert rows("test")[0]["text"] != "changed"


@pytest.mark.parametrize(("split", "size"), SPLIT_SIZES.items())
def test_a_split_is_balanced_and_repeats_nothing(split: str, size: int) -> None:
    assert Counter(row["label"] for row in rows(split)) == {0: size // 2, 1: size // 2}
    assert len({row["text"] for row in rows(split)}) == size


def test_no_sentence_is_in_both_splits() -> None:
    assert not {row["text"] for row in rows("train")} & {row["text"] for row in rows("test")}


def test_labels_are_mixed_so_that_any_part_of_the_rows_has_both() -> None:
    labels = [row["label"] for row in rows("train")]
    assert all(0.2 < sum(labels[i : i + 50]) / 50 < 0.8 for i in range(0, 2000, 50))


def test_sentences_have_6_to_40_tokens_and_many_lengths(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = [row["text"] for row in rows("train")]
    lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    assert min(lengths) >= 6
    assert max(lengths) <= 40
    assert len(set(lengths)) > 20


def test_some_sentences_are_hard() -> None:
    texts = [str(row["text"]) for row in rows("test")]
    assert sum(bool(DENIAL.search(text)) for text in texts) > 50
    assert sum(bool(CONTRAST.search(text)) for text in texts) > 50


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(UsageError, match="no split 'dev'; its splits are train, test"):
        rows("dev")


def test_the_weights_are_small_and_stored_in_half_precision_but_used_in_single(model: PreTrainedModel) -> None:
    path = MODEL_DIR / "model.safetensors"
    assert path.stat().st_size < MOST_BYTES
    assert model.dtype == torch.float32
    stored = model.num_parameters() * 2
    assert stored < path.stat().st_size < 1.1 * stored


def test_loading_takes_every_weight_from_the_file() -> None:
    _, report = AutoModelForMaskedLM.from_pretrained(MODEL_DIR, output_loading_info=True)
    assert not any(report.values())


def test_the_model_is_deep_enough_for_bbtv2_and_long_enough_for_prompts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    assert model.config.num_hidden_layers == 6
    assert model.config.max_position_embeddings >= 200
    assert tokenizer.model_max_length <= model.config.max_position_embeddings - 2
    assert model.config.vocab_size == len(tokenizer)


def test_label_words_are_single_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    assert WORDS == ["bad", "great"]
    for word in WORDS:
        (ids,) = tokenizer([f" {word}"], add_special_tokens=False)["input_ids"]
        assert tokenizer.convert_ids_to_tokens(ids) == [f"\u0120{word}"]


def test_every_word_of_the_sentences_is_one_token(tokenizer: PreTrainedTokenizerBase) -> None:
    words = sorted({word for row in rows("train") for word in str(row["text"]).split()})
    pieces = tokenizer([f" {word}" for word in words], add_special_tokens=False)["input_ids"]
    assert [word for word, ids in zip(words, pieces, strict=True) if len(ids) > 1] == []


def test_any_text_can_be_encoded_and_read_back(tokenizer: PreTrainedTokenizerBase) -> None:
    text = " naïve Ωmega 漢字 - 42%"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


@pytest.mark.parametrize("n_placeholders", [0, 50])
def test_without_a_prompt_the_model_is_poor(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, n_placeholders: int
) -> None:
    part = rows("test")[:200]
    template = load_task("demo").template("masked")
    texts = [template.format(text=row["text"], mask=tokenizer.mask_token) for row in part]
    labels = [int(row["label"]) for row in part]
    assert 0.4 <= accuracy(margins(model, tokenizer, texts, n_placeholders), labels) <= 0.65


def test_the_model_knows_the_class_so_that_tuning_has_something_to_find(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    part = rows("test")[:200]
    texts = [f"{row['text']} . all in all it felt {tokenizer.mask_token} ." for row in part]
    assert accuracy(margins(model, tokenizer, texts), [int(row["label"]) for row in part]) > 0.8
