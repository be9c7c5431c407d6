"""The journal: exact, append-only, and honest about damage."""

from __future__ import annotations

import logging
import math
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bbt_fast.export.errors import ArtifactError
from bbt_fast.tuner.artifacts.journal import Journal, first_record

some = settings(max_examples=40)
RECORDS: list[dict[str, Any]] = [
    {"kind": "start", "engine": "torch"},
    *({"kind": "generation", "layer": i % 3, "fitness": [0.1 * i, math.pi * i, 1e-310, -0.0]} for i in range(6)),
    {"kind": "development", "score": [0.5, 1 / 3]},
]


def write(path: Path) -> bytes:
    """Write a journal of RECORDS and return its bytes."""
    with closing(Journal(path)) as journal:
        for record in RECORDS:
            journal.append(record)
    return path.read_bytes()


def read(path: Path) -> list[dict[str, Any]]:
    """Open a journal and return its records."""
    with closing(Journal(path)) as journal:
        return journal.records


def test_records_come_back_to_the_bit(tmp_path):
    write(tmp_path / "j")
    found = read(tmp_path / "j")
    assert found == RECORDS
    numbers = [x for record in found for x in record.get("fitness", [])]
    assert [x.hex() for x in numbers] == [x.hex() for record in RECORDS for x in record.get("fitness", [])]
    assert first_record(tmp_path / "j") == {**RECORDS[0], "sum": first_record(tmp_path / "j")["sum"]}


@some
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False)))
def test_any_finite_fitness_survives(tmp_path_factory, fitness):
    path = tmp_path_factory.mktemp("journal") / "j"
    with closing(Journal(path)) as journal:
        journal.append({"fitness": fitness})
    assert [x.hex() for x in read(path)[0]["fitness"]] == [x.hex() for x in fitness]


def test_the_same_records_make_the_same_bytes(tmp_path):
    assert write(tmp_path / "a") == write(tmp_path / "b")


def test_appending_goes_on_where_it_ended(tmp_path):
    whole = write(tmp_path / "whole")
    for record in RECORDS:
        with closing(Journal(tmp_path / "parts")) as journal:
            journal.append(record)
    assert (tmp_path / "parts").read_bytes() == whole


@some
@given(data=st.data())
def test_a_torn_journal_keeps_its_whole_lines_and_says_what_it_dropped(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("journal") / "j"
    whole = write(path)
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    found = read(path)
    assert found == RECORDS[: whole[:cut].count(b"\n")]
    with closing(Journal(path)) as journal:
        for record in RECORDS[len(found) :]:
            journal.append(record)
    assert path.read_bytes() == whole


def test_dropping_is_said(tmp_path, caplog):
    whole = write(tmp_path / "j")
    (tmp_path / "j").write_bytes(whole[:-5])
    with caplog.at_level(logging.WARNING):
        read(tmp_path / "j")
    assert "the last line (8) is torn; the run drops it" in caplog.text


@some
@given(data=st.data())
def test_a_flipped_bit_anywhere_is_found_or_changes_nothing(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("journal") / "j"
    content = bytearray(write(path))
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    found = read(path)
    # The one harmless flip there is: 1e-310 may become 1E-310.
    assert found in (RECORDS, RECORDS[: bytes(content[:place]).count(b"\n")])


def test_damage_in_the_middle_is_said_and_the_old_file_kept(tmp_path, caplog):
    content = write(tmp_path / "journal.jsonl").replace(b'"layer":1', b'"layer":2')
    (tmp_path / "journal.jsonl").write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert read(tmp_path / "journal.jsonl") == RECORDS[:2]
    assert "damaged from line 3 on; the run repeats that part, and keeps the old file as" in caplog.text
    assert (tmp_path / "journal.damaged.jsonl").read_bytes() == content


@pytest.mark.parametrize(
    "line", [b"null\n", b"[]\n", b"{}\n", b'{"sum": 1}\n', b"[" * 10**5, b'{"a": NaN, "sum": ""}\n']
)
def test_lines_of_others_are_not_taken(line, tmp_path):
    (tmp_path / "j").write_bytes(line)
    assert read(tmp_path / "j") == []


def test_a_full_disk_leaves_whole_lines(tmp_path, monkeypatch):
    from bbt_fast.tuner.artifacts import files as module

    before = write(tmp_path / "j")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with closing(Journal(tmp_path / "j")) as journal:
        monkeypatch.setattr(module.os, "fsync", full)
        with pytest.raises(ArtifactError, match=r"cannot write .*: No space left on device\. All finished work"):
            journal.append(RECORDS[0])
        monkeypatch.undo()
        assert (tmp_path / "j").read_bytes() == before
        journal.append(RECORDS[1])
    assert read(tmp_path / "j") == [*RECORDS, RECORDS[1]]


def test_an_unreadable_journal_is_an_error_that_names_it(tmp_path):
    (tmp_path / "j").mkdir()
    with pytest.raises(ArtifactError, match=r"cannot read .*j: Is a directory"):
        Journal(tmp_path / "j")


def test_lines_reach_the_disk_once_a_second_and_at_the_end(tmp_path, monkeypatch):
    from bbt_fast.tuner.artifacts import journal as module

    now, synced = [0.0], []
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module.os, "fsync", lambda handle: synced.append(now[0]))
    with closing(Journal(tmp_path / "j")) as journal:
        for now[0] in (0.0, 0.4, 0.8, 1.2, 1.6):
            journal.append({"at": now[0]})
            assert len((tmp_path / "j").read_bytes().splitlines()) == round(now[0] / 0.4) + 1
        assert synced == [0.0, 1.2]
    assert synced == [0.0, 1.2, 1.6]
