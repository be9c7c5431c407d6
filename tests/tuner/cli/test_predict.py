"""Texts and pairs from the command line or from a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bbt_fast.tuner.cli import predict
from bbt_fast.tuner.cli.main import main


class Pairs:
    """Stands for a classifier of pairs; the class of a pair is its two texts."""

    config = SimpleNamespace(task=SimpleNamespace(texts=("text_a", "text_b")))

    def __call__(self, texts: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
        return [{"label": "".join(pair), "score": 0.5} for pair in texts]


def test_pairs_come_two_by_two_or_a_line_of_a_file_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(predict, "loaded", lambda _: Pairs())
    file = tmp_path / "pairs.tsv"
    file.write_bytes(b"a\tb\r\nc d\te\n")
    for words in (["a", "b", "c d", "e"], ["--file", str(file)]):
        assert main(["predict", "--run", "r", *words]) == 0
        assert capsys.readouterr().out.splitlines() == ["ab\t0.5000\ta\tb", "c de\t0.5000\tc d\te"]
    file.write_text("a\tb\nc d e\n")
    for words, message in (
        (["a", "b", "c"], "classifies pairs, but was given 3 texts"),
        (["--file", str(file)], "line 2: a pair is two texts with one tab between them, not 1"),
    ):
        assert main(["predict", "--run", "r", *words]) == 2
        assert message in capsys.readouterr().err
