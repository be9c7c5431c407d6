"""Prompt files, and where a search starts."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from bbt_fast.engine.embeddings import LocalEmbeddings
from bbt_fast.export.errors import ArtifactError, DataError, UsageError
from bbt_fast.tuner.artifacts.prompt import read_prompt, save_prompt
from bbt_fast.tuner.input.options import Options
from bbt_fast.tuner.run.initial_prompt import initial_prompts

PROMPTS = torch.randn(3, 3, 8, generator=torch.Generator().manual_seed(0))


def test_a_prompt_comes_back_to_the_bit_with_its_description(tmp_path):
    save_prompt(tmp_path / "prompt.safetensors", PROMPTS, {"model": "m", "seed": 3})
    for place in (tmp_path, tmp_path / "prompt.safetensors"):
        found, about = read_prompt(place)
        assert torch.equal(found, PROMPTS)
        assert about == {"model": "m", "seed": 3}


def test_equal_prompts_make_equal_files(tmp_path):
    for name, about in (("a", {"x": 1, "y": 2}), ("b", {"y": 2, "x": 1})):
        save_prompt(tmp_path / name, PROMPTS.double(), about)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(("name", "shape"), [("prompt", (1, 3, 8)), ("soft_prompt", (3, 8))])
def test_a_file_made_elsewhere_may_hold_one_tensor(name, shape, tmp_path):
    tensor = torch.randn(shape, dtype=torch.float16)
    save_file({name: tensor}, tmp_path / "p.safetensors")
    found, about = read_prompt(tmp_path / "p.safetensors")
    assert torch.equal(found, tensor.float().reshape(1, 3, 8))
    assert about == {}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a": torch.zeros(3, 8), "b": torch.zeros(3, 8)}, "holds tensors a, b, but a prompt is one float tensor"),
        ({"a": torch.zeros(8)}, r"holds a F32 tensor \[8\], but a prompt"),
        ({"a": torch.zeros(3, 8, dtype=torch.int64)}, r"holds a I64 tensor \[3, 8\], but a prompt"),
        ({"a": torch.full((3, 8), float("nan"))}, "holds NaN or infinite values"),
    ],
)
def test_what_is_no_prompt_is_refused(tensors, message, tmp_path):
    save_file(tensors, tmp_path / "p.safetensors")
    with pytest.raises(DataError, match=message):
        read_prompt(tmp_path / "p.safetensors")


@pytest.mark.parametrize("content", [b"", b"x", b"\xff" * 8, b"\x10\0\0\0\0\0\0\0{}", b"PK\x03\x04" * 10])
def test_a_damaged_file_is_refused_by_name(content, tmp_path):
    (tmp_path / "p.safetensors").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"p\.safetensors is damaged or no safetensors file"):
        read_prompt(tmp_path / "p.safetensors")


def test_a_changed_value_is_found(tmp_path):
    save_prompt(tmp_path / "p.safetensors", PROMPTS, {})
    content = bytearray((tmp_path / "p.safetensors").read_bytes())
    content[-2] ^= 1
    (tmp_path / "p.safetensors").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"p\.safetensors is damaged"):
        read_prompt(tmp_path / "p.safetensors")


def tokenizer(text, add_special_tokens):
    """A tokenizer whose tokens are numbers in a text."""
    assert not add_special_tokens
    return {"input_ids": [int(word) for word in text.split() if word.isdigit()]}


def start(engine, **options):
    """The initial prompts of options in cat mode."""
    return initial_prompts(Options(cat_or_add="cat", **options), engine, tokenizer)


@pytest.mark.parametrize(("cuts", "layers"), [("input", 1), ("layers", 3)])
def test_a_search_starts_at_zero(cuts, layers, toy_engine):
    assert torch.equal(start(toy_engine(cuts)), torch.zeros(layers, 3, 8))


@pytest.mark.parametrize(("text", "ids"), [("7", [7, 7, 7]), ("7 9", [7, 9, 7]), ("1 2 3 4", [1, 2, 3])])
def test_a_text_is_repeated_or_cut_to_the_prompts_length(text, ids, toy_engine):
    engine = toy_engine("layers")
    found = start(engine, init_text=text)
    assert torch.equal(found[0], engine.word_embeddings[ids])
    assert not found[1:].any()


def test_a_text_without_tokens_is_refused(toy_engine):
    with pytest.raises(UsageError, match="init_text 'none' has no tokens"):
        start(toy_engine(), init_text="none")


def test_a_text_needs_embeddings_as_wide_as_a_prompt():
    embeddings = LocalEmbeddings(torch.zeros(40, 4))
    narrow = SimpleNamespace(cuts="input", n_prompt_tokens=3, hidden_size=8, n_layers=3, embeddings=embeddings)
    with pytest.raises(UsageError, match=r"its embeddings are 4 wide and its prompts 8. Use --init_from"):
        start(narrow, init_text="7")


def test_an_input_prompt_starts_the_first_layer_of_a_deep_search(toy_engine, tmp_path):
    save_prompt(tmp_path / "p", PROMPTS[:1], {})
    found = start(toy_engine("layers"), init_from=str(tmp_path / "p"))
    assert torch.equal(found[0], PROMPTS[0])
    assert not found[1:].any()


@pytest.mark.parametrize(
    ("cuts", "shape", "needed"),
    [
        ("input", [3, 3, 8], [1, 3, 8]),
        ("layers", [2, 3, 8], [3, 3, 8]),
        ("input", [1, 4, 8], [1, 3, 8]),
        ("input", [1, 3, 9], [1, 3, 8]),
    ],
)
def test_prompts_of_another_shape_are_refused(cuts, shape, needed, toy_engine, tmp_path):
    save_prompt(tmp_path / "p", torch.zeros(shape), {"model": "other"})
    message = re.escape(f"holds prompts {shape} (made for other), but this run needs {needed}: layers, prompt tokens")
    with pytest.raises(DataError, match=message):
        start(toy_engine(cuts), init_from=str(tmp_path / "p"))
