"""Encoding: prompt places, answer positions, label words, and what is cut from long texts."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

from bbt_fast.export.errors import DataError, UsageError
from bbt_fast.tuner.data.encoding import Encoded, TextEncoder, longest_sequence, placeholder_ids
from bbt_fast.tuner.data.splits import Row, load_splits
from bbt_fast.tuner.tasks.task import Task, load_task, task_names

MakeTokenizer = Callable[[str], PreTrainedTokenizerFast]
FAMILIES = {
    "BERT": ("wordpiece", "masked", 1),
    "RoBERTa": ("bpe", "masked", 1),
    "BART": ("bpe", "seq2seq", 1),
    "T5": ("unigram", "seq2seq", 0),
    "GPT-2": ("gpt", "decoder", 0),
}
"""Tokenizer, kind and first prompt position of models like these."""
N_PROMPT = 5
LONG = 512
some = settings(max_examples=20)
SST2, MRPC = load_task("sst2"), load_task("mrpc")


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Each row of ``FAMILIES``."""
    return str(request.param)


@pytest.fixture
def make_encoder(make_tokenizer: MakeTokenizer) -> Callable[..., TextEncoder]:
    """A function that makes an encoder for a row of ``FAMILIES``."""

    def make(family: str, task: Task, mode: str = "add", max_length: int = LONG, n: int = N_PROMPT) -> TextEncoder:
        tokenizer, kind, start = FAMILIES[family]
        return TextEncoder(make_tokenizer(tokenizer), task, kind, mode, n, start, max_length)  # type: ignore[arg-type]

    return make


def row_of(task: Task, *texts: str) -> Row:
    return Row(texts[0], texts[1] if len(task.texts) > 1 else None, 0)


def ids_of(encoded: Encoded, i: int = 0) -> list[int]:
    """The token ids of an encoded text, without padding."""
    examples = encoded.examples
    return examples.input_ids[i, : examples.lengths[i]].tolist()  # type: ignore[no-any-return]


def check_answer(encoder: TextEncoder, encoded: Encoded) -> None:
    """The answer is read where the family reads it; only there, and only once, stands the mask."""
    examples = encoded.examples
    ids, positions = examples.input_ids, examples.answer_position
    tokens = torch.arange(len(ids)), positions
    if encoder.kind == "decoder":
        assert positions.tolist() == (examples.lengths - 1).tolist()
        return
    assert ((ids == encoder.mask_id).sum(1) == 1).all()
    if not encoder.uses_sentinel:
        assert (ids[tokens] == encoder.mask_id).all()
        assert examples.decoder_input_ids is None
    else:
        assert (positions == 1).all()
        assert examples.decoder_input_ids is not None
        start = [encoder.tokenizer.pad_token_id, encoder.mask_id]
        assert examples.decoder_input_ids.tolist() == [start] * len(ids)


@pytest.mark.parametrize("mode", ["add", "cat"])
@pytest.mark.parametrize("name", task_names())
def test_every_task_is_encoded_for_every_kind_of_model(
    make_encoder: Callable[..., TextEncoder], family: str, name: str, mode: str
) -> None:
    task = load_task(name)
    encoder = make_encoder(family, task, mode)
    encoded = encoder.encode([row_of(task, "the plot was dull", "the soup was cold"), row_of(task, "short", "so")])
    check_answer(encoder, encoded)
    assert encoded.truncated == 0
    assert len(set(encoded.examples.label_token_ids.tolist())) == len(task.labels)
    written = encoder.tokenizer.decode(ids_of(encoded))
    assert "dull" in written
    assert ("cold" in written) == (len(task.texts) == 2)
    for token in encoded.examples.label_token_ids:
        assert encoder.tokenizer.decode(token).strip()


@pytest.mark.parametrize("n", [1, 5, 50, 300])
def test_placeholders_are_exactly_n_plain_tokens_at_the_prompt_positions(
    make_encoder: Callable[..., TextEncoder], family: str, n: int
) -> None:
    rows = [Row("the plot was dull", None, 0), Row("good", None, 1)]
    added, bare = (make_encoder(family, SST2, mode, n=n, max_length=400).encode(rows) for mode in ("add", "cat"))
    encoder = make_encoder(family, SST2, n=n)
    start = encoder.prompt_start
    for i in range(2):
        ids = ids_of(added, i)
        assert ids[start : start + n] == encoder.placeholder_ids
        assert ids[:start] + ids[start + n :] == ids_of(bare, i)
    special = set(encoder.tokenizer.all_special_ids) | set(encoder.tokenizer.get_added_vocab().values())
    assert len(encoder.placeholder_ids) == n
    assert not special & set(encoder.placeholder_ids)
    shift = 0 if encoder.uses_sentinel else n
    assert (added.examples.answer_position - bare.examples.answer_position).tolist() == [shift] * 2


def test_placeholders_are_the_original_s_where_the_vocabulary_has_them(make_tokenizer: MakeTokenizer) -> None:
    large = make_tokenizer("bpe")
    assert placeholder_ids(large, 50) == list(range(1000, 1050))
    beyond = placeholder_ids(large, len(large) - 999)
    assert beyond[0] < 1000
    assert max(beyond) < len(large)


def test_a_leading_space_belongs_to_the_label_word_in_byte_level_vocabularies(
    make_encoder: Callable[..., TextEncoder],
) -> None:
    spelled = {
        family: make_encoder(family, SST2).tokenizer.convert_ids_to_tokens(make_encoder(family, SST2).label_words.rows)
        for family in FAMILIES
    }
    assert spelled == {
        "BERT": ["bad", "great"],
        "RoBERTa": ["Ġbad", "Ġgreat"],
        "BART": ["Ġnegative", "Ġpositive"],
        "T5": ["▁negative", "▁positive"],
        "GPT-2": ["Ġnegative", "Ġpositive"],
    }


@pytest.mark.parametrize(("family", "word"), [("BERT", "体"), ("T5", "体育"), ("RoBERTa", "ä½ĵèĤ²")])
def test_chinese_words_have_no_space_before_them(
    make_encoder: Callable[..., TextEncoder], family: str, word: str
) -> None:
    encoder = make_encoder(family, load_task("thucnews"))
    assert encoder.tokenizer.convert_ids_to_tokens(encoder.label_words.rows[0]) == word


def test_several_templates_are_all_rows_in_one_after_the_other(make_encoder, family):
    rows = [replace(row_of(SST2, "a gripping film"), label=1), row_of(SST2, "tedious")]
    encoder = make_encoder(family, SST2)
    encoded = encoder.encode(rows, templates=3)
    assert encoded.labels.tolist() == 3 * [1, 0]
    assert len(encoded.examples) == 6
    for i, template in enumerate(SST2.wordings(encoder.kind, 3)):
        alone = make_encoder(family, replace(SST2, templates={encoder.kind: template})).encode(rows)
        for j in range(2):
            assert ids_of(encoded, 2 * i + j) == ids_of(alone, j)
            assert encoded.examples.answer_position[2 * i + j] == alone.examples.answer_position[j]


def with_words(*words: tuple[str, ...]) -> Task:
    """SST-2 with other label words."""
    return replace(SST2, label_words=dict.fromkeys(SST2.templates, words))


@pytest.mark.parametrize(
    ("family", "pieces"), [("BERT", "'great', '##s'"), ("RoBERTa", "'Ġgreat', 's'"), ("T5", "'▁great', 's'")]
)
def test_a_label_word_of_several_tokens_is_refused_with_its_pieces(
    make_encoder: Callable[..., TextEncoder], family: str, pieces: str
) -> None:
    with pytest.raises(UsageError, match=rf"class 'positive' of task 'sst2' .*: 'greats' is 2 tokens \({pieces}\)"):
        make_encoder(family, with_words(("bad",), ("greats",)))


def test_the_first_alternative_of_one_token_is_the_label_word(make_encoder: Callable[..., TextEncoder]) -> None:
    encoder = make_encoder("RoBERTa", with_words(("bad",), ("greats", "great", "good")))
    assert encoder.tokenizer.convert_ids_to_tokens(encoder.label_words.rows) == ["Ġbad", "Ġgreat"]


def test_an_unknown_label_word_is_refused(make_encoder: Callable[..., TextEncoder]) -> None:
    with pytest.raises(UsageError, match="'\u2603' is not in the vocabulary; '\u2604' is not in the vocabulary"):
        make_encoder("BERT", with_words(("bad",), ("\u2603", "\u2604")))


def test_two_classes_of_one_token_are_refused(make_encoder: Callable[..., TextEncoder]) -> None:
    with pytest.raises(UsageError, match=r"classes 'negative' and 'positive' .* have the same label word .* 'great'"):
        make_encoder("BERT", with_words(("great",), ("Great",)))


@pytest.mark.parametrize("kind", ["masked", "seq2seq"])
def test_a_tokenizer_without_a_mask_token_is_refused(make_tokenizer: MakeTokenizer, kind: Any) -> None:
    with pytest.raises(UsageError, match=rf"has no mask token, at which {kind} models answer"):
        TextEncoder(make_tokenizer("gpt"), SST2, kind, "add", 5, 0, LONG)


def test_a_slow_tokenizer_is_refused(make_tokenizer: MakeTokenizer) -> None:
    slow: Any = SimpleNamespace(is_fast=False)
    with pytest.raises(UsageError, match="Take a model with a fast tokenizer"):
        TextEncoder(slow, SST2, "masked", "add", 5, 1, LONG)


def cut_and_whole(
    make_encoder: Callable[..., TextEncoder], family: str, task: Task, texts: tuple[str, ...], room: int
) -> tuple[list[int], list[int], list[list[int]]]:
    """Encode a row with and without a limit of ``room`` tokens beyond the template's own.

    Returns:
        The ids cut to fit, all ids, and per text the positions of its tokens among all ids.
    """
    empty = len(ids_of(make_encoder(family, task, "cat").encode([row_of(task, *["" for _ in texts])])))
    encoder = make_encoder(family, task, max_length=empty + room + N_PROMPT)
    row = row_of(task, *texts)
    encoded = encoder.encode([row])
    check_answer(encoder, encoded)
    whole = make_encoder(family, task, max_length=10**6).encode([row])
    assert encoded.truncated == (whole.examples.input_ids.shape[1] > empty + room + N_PROMPT)

    # An independent account of which token is whose, from the tokenizer's own offsets into the filled-in template.
    filled, spans = task.template(encoder.kind).replace("{mask}", encoder.mask_token), []
    for name, text in zip(task.texts, row.texts, strict=True):
        start = filled.index(f"{{{name}}}")
        spans.append(range(start, start + len(text)))
        filled = filled[:start] + text + filled[start + len(name) + 2 :]
    offsets = encoder.tokenizer(filled, return_offsets_mapping=True)["offset_mapping"]
    own: list[list[int]] = [[] for _ in spans]
    for i, (start, end) in enumerate(offsets):
        characters = [place for place in range(start, end) if not filled[place].isspace()] or list(range(start, end))
        for span, positions in zip(spans, own, strict=True):
            if characters and all(place in span for place in characters):
                positions.append(i + (N_PROMPT if i >= encoder.prompt_start else 0))
    return ids_of(encoded), ids_of(whole), own


# Nothing here looks like a field or a special token, which the account above could not tell from the template's.
LETTERS = st.text(st.characters(codec="utf-8", exclude_characters="{}[]<>|", exclude_categories=["C"]), max_size=40)
TEXTS = LETTERS | st.lists(
    st.sampled_from(["the", "plot", "was", "dull", "great", ".", "体育", "naïve", ","]), max_size=30
).map(" ".join)


@some
@given(text=TEXTS, room=st.integers(1, 30))
def test_a_long_text_is_cut_inside_the_text_only(
    make_encoder: Callable[..., TextEncoder], family: str, text: str, room: int
) -> None:
    for task in (SST2, load_task("dbpedia_14")):
        cut, whole, (own,) = cut_and_whole(make_encoder, family, task, (text.strip(),), room)
        over = len(whole) - len(cut)
        assert over >= 0
        dropped = own[len(own) - over :]
        assert len(dropped) == over
        assert cut == [token for i, token in enumerate(whole) if i not in dropped]


@some
@given(texts=st.tuples(TEXTS, TEXTS), room=st.integers(1, 30))
def test_of_two_texts_the_longer_is_cut_first(
    make_encoder: Callable[..., TextEncoder], family: str, texts: tuple[str, str], room: int
) -> None:
    cut, whole, own = cut_and_whole(make_encoder, family, MRPC, (texts[0].strip(), texts[1].strip()), room)
    over = len(whole) - len(cut)
    kept = [positions[:] for positions in own]
    short_first = sorted(kept, key=len)
    for _ in range(over):
        max(short_first, key=len).pop()
    dropped = {*own[0], *own[1]} - {*kept[0], *kept[1]}
    assert cut == [token for i, token in enumerate(whole) if i not in dropped]
    if over:
        short = min(own, key=len)
        assert kept[own.index(short)] == short or abs(len(kept[0]) - len(kept[1])) <= 1


@some
@given(data=st.data())
def test_no_text_can_pass_for_a_part_of_the_template(
    make_encoder: Callable[..., TextEncoder], family: str, data: st.DataObject
) -> None:
    tokenizer = make_encoder(family, SST2).tokenizer
    special = sorted({*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()})
    text = "".join(data.draw(st.lists(st.sampled_from(special) | st.text(max_size=3), max_size=8)))
    encoder = make_encoder(family, SST2)
    encoded = encoder.encode([Row(text, None, 0)])
    check_answer(encoder, encoded)
    ids, plain = ids_of(encoded), ids_of(encoder.encode([Row("x", None, 0)]))
    unknown = tokenizer.unk_token_id
    for token in set(tokenizer.all_special_ids) - {unknown}:
        assert ids.count(token) == plain.count(token)


def test_cut_texts_are_counted_and_logged(
    make_encoder: Callable[..., TextEncoder], caplog: pytest.LogCaptureFixture
) -> None:
    encoder = make_encoder("BERT", SST2, max_length=20)
    rows = [Row(text, None, 0) for text in ("dull " * 50, "dull", "great " * 9)]
    encoded = encoder.encode(rows)
    assert encoded.truncated == 2
    assert encoded.examples.lengths.tolist() == [20, 5 + 8, 20]
    assert "2 of 3 texts are longer than the 15 tokens that fit beside the prompt" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert encoder.encode(rows[1:2]).truncated == 0
    assert not caplog.text


@pytest.mark.parametrize("mode", ["add", "cat"])
def test_prompt_and_text_together_fit_in_either_mode(make_encoder: Callable[..., TextEncoder], mode: str) -> None:
    encoded = make_encoder("RoBERTa", SST2, mode, max_length=30).encode([Row("dull " * 50, None, 0)])
    assert encoded.examples.input_ids.shape[1] == (30 if mode == "add" else 30 - N_PROMPT)


def test_a_template_that_leaves_no_room_is_refused(make_encoder: Callable[..., TextEncoder]) -> None:
    encoder = make_encoder("RoBERTa", SST2, max_length=10)
    with pytest.raises(UsageError, match=r"template of task 'sst2' takes more than the 5 tokens .* --n_prompt_tokens"):
        encoder.encode([Row("dull", None, 0)])


def test_no_rows_are_refused(make_encoder: Callable[..., TextEncoder]) -> None:
    with pytest.raises(DataError, match="'sst2' has no rows to encode"):
        make_encoder("RoBERTa", SST2).encode([])


def test_many_rows_keep_their_order(make_encoder: Callable[..., TextEncoder]) -> None:
    encoder = make_encoder("GPT-2", SST2)
    rows = [Row("dull " * (i % 7), None, i % 2) for i in range(2500)]
    encoded = encoder.encode(rows)
    assert encoded.labels.tolist() == [row.label for row in rows]
    for i in (0, 1023, 1024, 2499):
        assert ids_of(encoded, i) == ids_of(encoder.encode([rows[i]]))


def test_a_decoder_s_text_ends_with_the_template_whatever_its_tokenizer_adds(make_tokenizer: MakeTokenizer) -> None:
    ending = TextEncoder(make_tokenizer("bpe"), SST2, "decoder", "cat", 5, 0, LONG)
    ids = ids_of(ending.encode([Row("dull", None, 0)]))
    assert ending.tokenizer.decode(ids) == "<s>dull . The sentiment is"


@pytest.mark.parametrize(
    ("config", "model_max_length", "longest"),
    [
        ({"model_type": "bert", "max_position_embeddings": 512}, 512, 512),
        ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 10**30, 512),
        ({"model_type": "gpt2", "max_position_embeddings": 1024}, 10**30, 1024),
        ({"model_type": "t5"}, 512, 512),
        ({"model_type": "t5"}, 10**30, 512),
        ({"model_type": "bert", "max_position_embeddings": 512}, 128, 128),
    ],
)
def test_the_longest_sequence_is_the_model_s_or_the_tokenizer_s(
    config: dict[str, Any], model_max_length: int, longest: int
) -> None:
    tokenizer: Any = SimpleNamespace(model_max_length=model_max_length)
    assert longest_sequence(SimpleNamespace(**config), tokenizer) == longest


@pytest.fixture(scope="session")
def minilm(shared_file: Callable[..., Path]) -> Path:
    """A small real model."""
    return shared_file("models", "minilm-mlm")


SHORTENED = {"dbpedia_14": 1, "yelp_polarity": 29}
"""Test texts of the samples that are longer than the model takes beside 50 prompt tokens."""


@pytest.mark.parametrize(
    "name", ["sst2", "yelp_polarity", "ag_news", "dbpedia_14", "mrpc", "rte", "snli", "trec", "subj"]
)
def test_the_real_samples_are_encoded_with_a_real_tokenizer(
    name: str, minilm: Path, shared_file: Callable[..., Path]
) -> None:
    task, tokenizer = load_task(name), AutoTokenizer.from_pretrained(minilm)
    longest = longest_sequence(AutoConfig.from_pretrained(minilm), tokenizer)
    test = load_splits(task, data_dir=shared_file("data", name)).test
    for mode in ("add", "cat"):
        encoder = TextEncoder(tokenizer, task, "masked", mode, 50, 1, longest)  # type: ignore[arg-type]
        encoded = encoder.encode(test)
        check_answer(encoder, encoded)
        assert encoded.truncated == SHORTENED.get(name, 0)
        assert encoded.examples.input_ids.shape[1] <= 512 - (50 if mode == "cat" else 0)


@pytest.mark.parametrize("name", task_names())
def test_a_real_english_vocabulary_has_the_label_words_or_says_which_it_lacks(name: str, minilm: Path) -> None:
    tokenizer, task = AutoTokenizer.from_pretrained(minilm), load_task(name)
    lacking = {"amazon", "bq", "chnsent", "cmnli", "lcqmc", "ocnli", "thucnews", "tnews"}
    if name in lacking:
        with pytest.raises(
            UsageError, match=rf"of task '{name}' has no label word of one token .*not in the vocabulary"
        ):
            TextEncoder(tokenizer, task, "masked", "add", 50, 1, 512)
    else:
        ids = TextEncoder(tokenizer, task, "masked", "add", 50, 1, 512).label_words.rows
        words = [alternatives[0].lower() for alternatives in task.words("masked")]
        assert tokenizer.convert_ids_to_tokens(ids) == words
