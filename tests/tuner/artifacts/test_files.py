"""Files that are whole or not there."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bbt_fast.export.errors import ArtifactError
from bbt_fast.tuner.artifacts import files
from bbt_fast.tuner.artifacts.files import read_json, write_json, write_whole


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "a.bin"
    write_whole(path, b"old")
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.bin"
    write_whole(path, b"old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(ArtifactError, match=r"cannot write .*a\.bin: No space left on device.*free space"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_a_missing_folder_is_an_error_that_names_the_file(tmp_path):
    with pytest.raises(ArtifactError, match=r"cannot write .*gone/a\.json: No such file"):
        write_json(tmp_path / "gone" / "a.json", {})


def test_a_written_file_has_the_rights_that_any_new_file_has(tmp_path):
    write_whole(tmp_path / "a", b"")
    (tmp_path / "b").touch()
    assert os.stat(tmp_path / "a").st_mode == os.stat(tmp_path / "b").st_mode


def test_json_comes_back_as_it_was(tmp_path):
    value = {"a": [1, 2.5, None, True], "ü": "x", "deep": {"b": 1e-300}}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff", b'{"a": 1}', b"1" * 5000, b"[" * 100000])
def test_what_was_not_written_here_is_refused(content, tmp_path):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"a\.json is missing or damaged"):
        read_json(tmp_path / "a.json")


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """A JSON file with a checksum."""
    path = tmp_path_factory.mktemp("json") / "config.json"
    write_json(path, {"budget": 2000, "loss_type": "ce", "seed": 42, "sigma": 0.25})
    return path


@settings(max_examples=60)
@given(data=st.data())
def test_a_flipped_bit_is_found_or_changes_nothing(written, data):
    content = bytearray(written.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    damaged = written.with_name("damaged.json")
    damaged.write_bytes(content)
    try:
        value = read_json(damaged)
    except ArtifactError:
        return
    assert value == read_json(written)


def test_a_readable_file_holds_the_value_for_people(written):
    assert json.loads(written.read_text())["budget"] == 2000
