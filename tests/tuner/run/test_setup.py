"""What the seeds of a command share."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import BartConfig, PreTrainedTokenizerFast

from bbt_fast.export.cpt import CptConfig, CptForMaskedLM
from bbt_fast.export.errors import UsageError
from bbt_fast.tuner.input.options import Options
from bbt_fast.tuner.run.setup import KEY_VARIABLE, Setup, read_key
from bbt_fast.tuner.tasks.presets import resolve
from bbt_fast.tuner.tasks.task import load_task


def test_cpt_is_asked_as_a_masked_model_though_its_checkpoints_call_themselves_bart(
    tmp_path: Path, make_tokenizer: Callable[[str], PreTrainedTokenizerFast]
) -> None:
    BartConfig(vocab_size=60, d_model=16).save_pretrained(tmp_path)
    task = load_task("sst2")
    options = resolve(Options.of(model_name=str(tmp_path), task_name="sst2"), task.preset)
    setup = Setup(options, task)
    tiny = CptConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=60)
    setup.model = CptForMaskedLM(tiny)
    assert setup.config.model_type == "bart"
    setup.tokenizer = make_tokenizer("wordpiece")
    assert setup.prompt_config(options, setup.encoder, "digest").kind == "masked"


@pytest.mark.parametrize("content", ["a-key", "a-key\n", "\n a-key \r\n"])
def test_a_key_is_read_from_its_file_without_the_blanks_around_it(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "another")
    (tmp_path / "key").write_text(content, newline="")
    assert read_key(str(tmp_path / "key")) == "a-key"


def test_without_a_file_the_key_is_the_environment_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    assert read_key(None) is None
    monkeypatch.setenv(KEY_VARIABLE, "a-key")
    assert read_key(None) == "a-key"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read (No such file or directory)"),
        (b"\xff\xfe", "cannot be read ('utf-8' codec can't decode byte 0xff in position 0"),
        (b"", "must hold one key and nothing else"),
        (b" \n", "must hold one key and nothing else"),
        (b"one two", "must hold one key and nothing else"),
        (b"# for Ann\nkey\n", "must hold one key and nothing else"),
    ],
)
def test_a_file_without_exactly_one_key_is_refused_by_name(content: bytes | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UsageError, match=re.escape(f"--api_key {file} {message}")):
        read_key(str(file))
