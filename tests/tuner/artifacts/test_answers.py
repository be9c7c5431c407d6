"""What a run leaves of its test: whole, the same for the same answers, and refused where it is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bbt_fast.export.errors import ArtifactError
from bbt_fast.tuner.artifacts.answers import ANSWERS, Answers, read_answers


@pytest.fixture
def answers() -> Answers:
    """Random answers to five texts."""
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    return Answers(logits, torch.tensor([0, 1, 2, 1, 0]), "abc")


def test_answers_come_back_as_they_were_and_equal_ones_are_equal_bytes(answers, tmp_path):
    answers.write(tmp_path)
    first = (tmp_path / ANSWERS).read_bytes()
    found = read_answers(tmp_path)
    assert torch.equal(found.logits, answers.logits)
    assert torch.equal(found.labels, answers.labels)
    assert found.examples == "abc"
    found.write(tmp_path)
    assert (tmp_path / ANSWERS).read_bytes() == first


@pytest.mark.parametrize("keep", [0, 20, -1])
def test_a_file_cut_short_or_missing_is_refused_by_name(keep, answers, tmp_path):
    with pytest.raises(ArtifactError, match=r"test_logits\.safetensors is missing or damaged"):
        read_answers(tmp_path)
    answers.write(tmp_path)
    path = tmp_path / ANSWERS
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ArtifactError, match=r"test_logits\.safetensors is missing or damaged"):
        read_answers(tmp_path)


def test_a_changed_number_is_noticed(answers, tmp_path):
    answers.write(tmp_path)
    path = tmp_path / ANSWERS
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ArtifactError, match="its checksum does not match its contents"):
        read_answers(Path(tmp_path))
