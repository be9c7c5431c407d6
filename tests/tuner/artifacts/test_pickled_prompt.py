"""The original's pickled prompt: read, without running what a pickle may hold."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from bbt_fast.export.errors import DataError
from bbt_fast.tuner.artifacts.prompt import read_prompt


def test_a_pickled_embedding_is_a_prompt(tmp_path: Path) -> None:
    embedding = nn.Embedding(5, 8)
    torch.save(embedding, tmp_path / "nli_base_prompt.pt")
    prompts, about = read_prompt(tmp_path / "nli_base_prompt.pt")
    assert torch.equal(prompts, embedding.weight.detach()[None])
    assert not about


def test_a_pickle_that_runs_code_is_refused_and_runs_none(tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[object, tuple[str, ...]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save(Malicious(), tmp_path / "p.pt")
    with pytest.raises(DataError, match=r"p\.pt is refused: .* Save the tensor \[n, H\] with safetensors"):
        read_prompt(tmp_path / "p.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"\x80\x02.", b"PK\x03\x04 no archive"])
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "p.pt").write_bytes(content)
    with pytest.raises(DataError, match=r"p\.pt is refused"):
        read_prompt(tmp_path / "p.pt")


@pytest.mark.parametrize("other", [{"a": torch.ones(2, 2)}, torch.ones(3), torch.ones(2, 2, dtype=torch.long)])
def test_what_is_no_prompt_is_named(tmp_path: Path, other: object) -> None:
    torch.save(other, tmp_path / "p.pt")
    with pytest.raises(DataError, match=r"p\.pt holds a (dict|Tensor), but a pickled prompt is one embedding"):
        read_prompt(tmp_path / "p.pt")


def test_values_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    torch.save(torch.full((2, 3), float("nan")), tmp_path / "p.pt")
    with pytest.raises(DataError, match="NaN or infinite"):
        read_prompt(tmp_path / "p.pt")
