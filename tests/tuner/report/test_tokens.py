"""What a prompt lies near: prompts made to lie on tokens are found on them, whatever the embedding block does."""

from __future__ import annotations

import re

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)

from bbt_fast import tune
from bbt_fast.export.model import StagedModel
from bbt_fast.tuner.cli.main import main
from bbt_fast.tuner.report import tokens
from bbt_fast.tuner.report.tokens import Near, Position, agreement, look_at

N = 4
TARGETS = [31, 7, 31, 50]
PLACEHOLDERS = [20, 21, 22, 23]
EMBEDDINGS = {
    "roberta": lambda model, ids: model.roberta.embeddings(input_ids=ids),
    "bert": lambda model, ids: model.bert.embeddings(input_ids=ids),
}


def in_place(model, kind, ids):
    """Tokens as the model's own embedding block has them at the positions of a prompt, [n, H]."""
    with torch.inference_mode():
        return EMBEDDINGS[kind](model, torch.tensor([[0, *ids, 2]]))[0, 1 : 1 + len(ids)]


def not_special(model, special=range(5)):
    """A mask of the vocabulary without the special tokens."""
    known = torch.ones(model.config.vocab_size, dtype=torch.bool)
    known[list(special)] = False
    return known


@pytest.mark.parametrize("kind", EMBEDDINGS)
@pytest.mark.parametrize("cuts", ["input", "layers"])
@pytest.mark.parametrize("at_once", [64, tokens.VALUES_AT_ONCE])
def test_a_prompt_that_turns_placeholders_into_tokens_is_seen_through(kind, cuts, at_once, make_model, monkeypatch):
    monkeypatch.setattr(tokens, "VALUES_AT_ONCE", at_once)
    model = make_model(kind)
    prompt = in_place(model, kind, TARGETS) - in_place(model, kind, PLACEHOLDERS)
    found = look_at(StagedModel(model, "add", N, cuts), prompt, PLACEHOLDERS, not_special(model), 3)
    for at, target, placeholder in zip(found, TARGETS, PLACEHOLDERS, strict=True):
        assert at.placeholder == placeholder
        for near in (at.nearest, at.towards):
            assert near[0].token == target
            assert near[0].cosine == pytest.approx(1, abs=1e-4)
            assert [one.cosine for one in near] == sorted((one.cosine for one in near), reverse=True)
            assert all(one.token >= 5 for one in near), "a special token"


SMALL = {"vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
OTHERS = {
    "GPT-2": lambda: GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, **SMALL)),
    "T5": lambda: T5ForConditionalGeneration(
        T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0, **SMALL)
    ),
    "BART": lambda: BartForConditionalGeneration(
        BartConfig(
            d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
            encoder_ffn_dim=16, decoder_ffn_dim=16, decoder_start_token_id=2, **SMALL,
        )
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", OTHERS)
@pytest.mark.parametrize("cuts", ["input", "layers"])
def test_where_nothing_is_added_the_placeholders_are_nearest(family, cuts):
    model = OTHERS[family]().eval()
    staged = StagedModel(model, "add", N, cuts)
    found = look_at(staged, torch.zeros(N, staged.hidden_size), PLACEHOLDERS, not_special(model), 2)
    assert [at.nearest[0].token for at in found] == PLACEHOLDERS
    assert all(at.nearest[0].cosine == pytest.approx(1, abs=1e-4) for at in found)


def test_a_concatenated_prompt_is_compared_with_word_embeddings(make_model):
    model = make_model("roberta")
    staged = StagedModel(model, "cat", N, "input")
    prompt = 3 * staged.word_embeddings[TARGETS].detach()
    found = look_at(staged, prompt, [], not_special(model), 2)
    assert [at.nearest[0].token for at in found] == TARGETS
    assert [(at.placeholder, at.towards) for at in found] == [(None, ())] * N


def test_agreement_counts_tokens_of_several_runs_and_places():
    def run(*names):
        return [Position(0, (Near(0, 0.9),), tuple(Near(token, 0.5) for token in at)) for at in names]

    one, other, third = run([5, 6], [7]), run([5], [8, 6]), run([9], [7, 9])
    prompts = [torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[2.0, 0.0], [0.0, -1.0]]), torch.ones(2, 2)]
    found = agreement(prompts, [one, other, third])
    assert found.tokens == [(5, 2), (6, 2), (7, 2)]
    assert found.in_place == 2  # 5 first in one and other, 7 second in one and third
    assert found.cosine == pytest.approx((0 + 2**-0.5 + 0) / 3)


@pytest.mark.parametrize("mode", ["add", "cat"])
def test_the_command_tells_of_each_run_and_of_all(mode, small, capsys):
    for seed, algorithm in ((1, "bbt"), (2, "bbtv2")):
        tune(**small(seed=seed, algorithm=algorithm, cat_or_add=mode), output_dir=f"runs/{seed}")
    assert main(["tokens", "--run", "runs", "--top", "2"]) == 0
    out = capsys.readouterr().out
    rows = re.findall(r"^(\d) +'.*$", out, re.M)
    assert rows == list("01234" * 2)
    assert ("moved towards" in out) == (mode == "add")
    assert ("placeholder is still the nearest" in out) == (mode == "add")
    assert out.count("Deeper prompts enter hidden states") == 1
    assert "The 2 runs together" in out


def test_runs_on_different_prompt_lengths_are_not_compared(small, capsys):
    for n in (3, 5):
        tune(**small(n_prompt_tokens=n), output_dir=f"runs/{n}")
    assert main(["tokens", "--run", "runs"]) == 0
    assert "their prompts are not compared" in capsys.readouterr().out


def test_a_senseless_number_of_tokens_is_refused(capsys):
    assert main(["tokens", "--run", "x", "--top", "0"]) == 2
    assert "--top is 0, but must be at least 1" in capsys.readouterr().err
