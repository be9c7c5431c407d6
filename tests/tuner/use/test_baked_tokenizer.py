"""A baked tokenizer.json writes raw texts as the run's own encoder does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from bbt_fast.export.errors import UsageError
from bbt_fast.tuner.data.columns import Row, cleaned
from bbt_fast.tuner.data.encoding import TextEncoder
from bbt_fast.tuner.input.options import Options
from bbt_fast.tuner.run.setup import Setup
from bbt_fast.tuner.tasks.presets import resolve
from bbt_fast.tuner.tasks.task import load_task
from bbt_fast.tuner.use.baked_tokenizer import BakedTokenizer, bake_tokenizer, encode_rows

KINDS = {"wordpiece": "masked", "bpe": "masked", "gpt": "decoder"}
CASES = [
    (vocabulary, task, mode)
    for vocabulary in KINDS
    for task, mode in (("sst2", "add"), ("ag_news", "cat"), ("snli", "add"), ("mrpc", "cat"), ("bq", "add"))
]
LONGEST = 60


@pytest.fixture(scope="module")
def pieces(make_tokenizer: Callable[[str], Any]) -> Callable[..., tuple[TextEncoder, BakedTokenizer]]:
    """A function that makes an encoder and what it bakes to."""

    @cache
    def make(vocabulary: str, name: str, mode: str) -> tuple[TextEncoder, BakedTokenizer]:
        task = load_task(name)
        if len(task.texts) == 1:
            task = replace(task, replace={"<br />": " "})
        start = 0 if vocabulary == "gpt" else 1
        encoder = TextEncoder(make_tokenizer(vocabulary), task, KINDS[vocabulary], mode, 5, start, LONGEST)  # type: ignore[arg-type]
        baked = bake_tokenizer(encoder)
        reread = Tokenizer.from_str(baked.tokenizer.to_str())  # what is written to the file is what counts
        return encoder, replace(baked, tokenizer=reread)

    return make


WORDS = st.sampled_from(
    [
        "film",
        "a",
        "great",
        "terrible!",
        "...",
        '"quoted"',
        "<mask>",
        "[MASK]",
        "</s>",
        "<br />",
        "的",
        "好",
        "3.5",
        "'s",
    ]
)
TEXTS = st.one_of(
    st.lists(WORDS, min_size=1, max_size=80).map(" ".join),
    st.text(st.characters(exclude_categories=["Cs", "Cc", "Co", "Cn", "Mn"]), min_size=1, max_size=30),
).filter(lambda text: text.replace("<br />", " ").strip())


@pytest.mark.parametrize(("vocabulary", "name", "mode"), CASES)
@settings(max_examples=10)
@given(first=TEXTS, second=TEXTS)
def test_a_baked_tokenizer_gives_the_encoder_s_tokens(vocabulary, name, mode, pieces, first, second):
    encoder, baked = pieces(vocabulary, name, mode)
    row = Row(first, second if len(encoder.task.texts) > 1 else None, 0)
    (encoding,) = encode_rows(baked, [row])
    # Where the caller brings the space before the second text, and it makes a token, a cut pair may differ by that one.
    assume(len(encoding.ids) < baked.longest or not any(baked.prefixes))
    assert [encoding.ids] == encoder.token_ids([cleaned(encoder.task, row)])


@pytest.mark.parametrize("vocabulary", KINDS)
def test_truncation_takes_from_the_texts_alone_and_of_two_from_the_longer(vocabulary, pieces):
    encoder, baked = pieces(vocabulary, "snli", "add")
    long, longer = "one two three " * 30, "four five six seven " * 40
    for pair in ((long, longer), (longer, long), (long, long), ("short", long), (long, "short")):
        row = Row(*pair, 0)
        (encoding,) = encode_rows(baked, [row])
        assert len(encoding.ids) == LONGEST == baked.longest
        assert [encoding.ids] == encoder.token_ids([cleaned(encoder.task, row)])


def test_a_batch_is_padded_to_its_longest(pieces):
    _, baked = pieces("bpe", "sst2", "add")
    short, long = encode_rows(baked, [Row("good", None, 0), Row("a good film", None, 0)], padded=True)
    assert len(short.ids) == len(long.ids)
    assert sum(short.attention_mask) < sum(long.attention_mask) == len(long.ids)
    assert set(short.ids[sum(short.attention_mask) :]) == {baked.tokenizer.token_to_id("<pad>")}


def test_only_the_second_text_of_a_byte_level_pair_needs_a_space_of_its_caller(pieces):
    assert pieces("bpe", "snli", "add")[1].prefixes == ("", " ")
    assert pieces("wordpiece", "snli", "add")[1].prefixes == ("", "")
    assert pieces("bpe", "ag_news", "cat")[1].prefixes == ("",)


def test_a_lone_space_token_is_cut_with_its_text(demo_encoder):
    text = "a long text that does not fit, " * 40 + "?"  # " ?" is two tokens there, of which the first is trimmed away
    assert demo_encoder.tokenizer.tokenize(" ?") == ["Ġ", "?"]
    frame = demo_encoder.frame()
    (ids,) = demo_encoder.token_ids([Row(text, None, 0)])
    assert frame[1:] == ["text", ids[-len(frame[2]) :]]
    baked = bake_tokenizer(demo_encoder)
    assert [baked.tokenizer.encode(text).ids] == [ids]


@pytest.fixture
def demo_encoder() -> TextEncoder:
    """The encoder of the packaged demo, whose tokenizer trims spaces off its tokens' offsets, as RoBERTa's does."""
    task = load_task("demo")
    return Setup(resolve(Options(n_prompt_tokens=5), task.preset), task).encoder


def test_a_template_that_runs_into_its_text_is_refused(make_tokenizer):
    encoder = TextEncoder(make_tokenizer("unigram"), load_task("bq"), "seq2seq", "add", 5, 0, LONGEST)
    with pytest.raises(UsageError, match=r"'bq' cannot be baked into a tokenizer: .* as in .* Put spaces between"):
        bake_tokenizer(encoder)
