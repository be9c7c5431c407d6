"""Data: layouts, few-shot draws, and what is said about files that cannot be used."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from bbt_fast.export.errors import BbtFastError, DataError, UsageError
from bbt_fast.tuner.data.columns import Columns, label_index
from bbt_fast.tuner.data.records import READERS, Record, read_records
from bbt_fast.tuner.data.splits import Row, Splits, few_shot_indices, load_splits, parse_column_mapping
from bbt_fast.tuner.tasks.task import Task, load_task

ONE = Task("one", ("bad", "good"), {"masked": "{text} {mask}"}, {"masked": (("bad",), ("good",))})
TWO = Task("two", ("no", "yes"), {"masked": "{text_a} {mask} {text_b}"}, {"masked": (("No",), ("Yes",))})
Records = list[dict[str, Any]]


def some_records(n: int, task: Task = ONE) -> Records:
    return [{**{name: f"{name} {i}" for name in task.texts}, "label": i % len(task.labels)} for i in range(n)]


def lines_of(records: Records, between: str) -> str:
    """Records as the lines of a csv or tsv file."""
    return "".join(f"{between.join(map(str, line))}\n" for line in [records[0], *(r.values() for r in records)])


def write(path: Path, records: Records) -> None:
    """Write records in the format of a file's suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    match path.suffix:
        case ".jsonl":
            path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
        case ".csv" | ".tsv":
            path.write_text(lines_of(records, "," if path.suffix == ".csv" else "\t"), encoding="utf-8")
        case ".parquet":
            parquet.write_table(pyarrow.Table.from_pylist(records), path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with 20 training and 6 test rows for the task ``ONE``."""
    write(tmp_path / "train.jsonl", some_records(20))
    write(tmp_path / "test.jsonl", some_records(6))
    return tmp_path


def labels_of(rows: list[Row]) -> Counter[int]:
    return Counter(row.label for row in rows)


@pytest.mark.parametrize("suffix", READERS)
@pytest.mark.parametrize("task", [ONE, TWO], ids=["one text", "two texts"])
def test_every_format_gives_the_same_splits(tmp_path: Path, suffix: str, task: Task) -> None:
    for at, kind in ((tmp_path / "first", ".jsonl"), (tmp_path / "second", suffix)):
        write(at / f"train{kind}", some_records(20, task))
        write(at / f"test{kind}", some_records(6, task))
    first, second = (load_splits(task, data_dir=tmp_path / name, k_shot=3) for name in ("first", "second"))
    assert first == second
    assert labels_of(first.train) == labels_of(first.dev) == {0: 3, 1: 3}
    assert [row.texts[0] for row in first.test] == [f"{task.texts[0]} {i}" for i in range(6)]
    assert not {row.texts for row in first.train} & {row.texts for row in first.dev}


def test_the_seed_fixes_the_examples(folder: Path) -> None:
    draws = [load_splits(ONE, data_dir=folder, k_shot=4, seed=seed) for seed in (1, 1, 2)]
    assert draws[0] == draws[1]
    assert draws[0].train != draws[2].train
    assert draws[0].test == draws[2].test


@given(labels=st.lists(st.integers(0, 3), max_size=60), k=st.integers(1, 5), seed=st.integers(0, 2**32 - 1))
def test_examples_are_drawn_as_in_the_original(labels: list[int], k: int, seed: int) -> None:
    np.random.seed(seed)  # noqa: NPY002 - the original's own calls
    order = list(range(len(labels)))
    np.random.shuffle(order)  # noqa: NPY002
    train: list[int] = []
    dev: list[int] = []
    for position in order:
        same = [labels[other] for other in train].count(labels[position])
        if same < k:
            train.append(position)
        elif [labels[other] for other in dev].count(labels[position]) < k:
            dev.append(position)
    assert few_shot_indices(labels, k, seed, parts=2) == [train, dev]


def test_a_dev_file_of_the_user_s_own_is_what_development_is_done_on(folder: Path) -> None:
    write(folder / "dev.csv", [{"text": f"dev {i}", "label": ["bad", "good"][i % 2]} for i in range(8)])
    splits = load_splits(ONE, data_dir=folder, k_shot=4)
    assert labels_of(splits.dev) == {0: 4, 1: 4}
    assert {row.text_a.split()[0] for row in splits.dev} == {"dev"}


def test_max_test_examples_keeps_the_same_part_for_every_seed(folder: Path) -> None:
    parts = [load_splits(ONE, data_dir=folder, k_shot=1, seed=seed, max_test_examples=4).test for seed in (1, 2)]
    whole = load_splits(ONE, data_dir=folder, k_shot=1, max_test_examples=7).test
    assert parts[0] == parts[1]
    assert len(whole) == 6
    assert parts[0] == [row for row in whole if row in parts[0]]
    assert len(parts[0]) == 4


@pytest.mark.parametrize("values", [{"k_shot": 0}, {"max_test_examples": 0}])
def test_counts_begin_at_one(folder: Path, values: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="is 0, but must be at least 1"):
        load_splits(ONE, data_dir=folder, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("task", "header", "row"),
    [
        (ONE, None, "{text}\t{label}"),
        (TWO, None, "{text}\t{text}\t{label}"),
        (ONE, "sentence\tlabel", "{text}\t{label}"),
        (TWO, "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", "{label}\t1\t2\t{text}\t{text}"),
        (TWO, "index\tsentence1\tsentence2\tlabel", "7\t{text}\t{text}\t{label}"),
        (TWO, "index\tlabel1\tsentence1\tsentence2\tgold_label", "7\tno\t{text}\t{text}\t{label}"),
    ],
    ids=["bare", "bare pair", "SST-2", "MRPC", "RTE", "SNLI"],
)
@pytest.mark.parametrize("by_name", [False, True], ids=["numbers", "names"])
def test_few_shot_folders_are_taken_as_they_were_drawn(
    tmp_path: Path, task: Task, header: str | None, row: str, by_name: bool
) -> None:
    for split, n in (("train", 4), ("dev", 4), ("test", 3)):
        lines = [] if header is None else [header]
        lines += [row.format(text=f'"{split} {i}', label=task.labels[i % 2] if by_name else i % 2) for i in range(n)]
        path = tmp_path / "2-13" / f"{split}.tsv"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines), encoding="utf-8")
    splits = load_splits(task, data_dir=tmp_path, k_shot=2, seed=13)
    assert [row.text_a for row in splits.train] == ['"train 0', '"train 1', '"train 2', '"train 3']
    assert [row.label for row in splits.dev] == [0, 1, 0, 1]
    assert len(splits.test) == 3
    assert splits == load_splits(task, data_dir=tmp_path / "2-13", k_shot=2, seed=8)


def test_a_few_shot_folder_of_other_seeds_is_not_taken_for_this_one(tmp_path: Path) -> None:
    write(tmp_path / "16-13" / "train.tsv", some_records(4))
    with pytest.raises(DataError, match=r"has no few-shot folder 16-42, only 16-13: their names are k_shot and seed"):
        load_splits(ONE, data_dir=tmp_path)


def test_columns_of_other_names_are_mapped(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write(tmp_path / f"{split}.csv", [{"review": f"r {i}", "stars": i % 2} for i in range(8)])
    mapping = parse_column_mapping("text=review, label=stars")
    assert mapping == {"text": "review", "label": "stars"}
    splits = load_splits(ONE, data_dir=tmp_path, k_shot=2, column_mapping=mapping)
    assert len(splits.test) == 8
    message = r"train\.csv, line 2: there is no column 'text' .*'review', 'stars'.*text=COLUMN"
    with pytest.raises(DataError, match=message):
        load_splits(ONE, data_dir=tmp_path, k_shot=2)
    with pytest.raises(DataError, match=r"there is no column 'klass' for 'label'"):
        load_splits(ONE, data_dir=tmp_path, k_shot=2, column_mapping={"text": "review", "label": "klass"})


@pytest.mark.parametrize("text", ["", "text", "text=", "=a", "text=a,,"])
def test_a_malformed_column_mapping_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="must have the form text=sentence,label=class"):
        parse_column_mapping(text)


def test_a_column_mapping_of_unknown_names_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="names 'txt', but must name one of text, text_a, text_b, label"):
        load_splits(ONE, data_dir=folder, column_mapping={"txt": "a"})


BAD_FILES = [
    (".jsonl", b"", r"train\.jsonl has no rows"),
    (".jsonl", b"\n \n", r"train\.jsonl has no rows"),
    (".jsonl", b'{"text": "a", "label": 0}\n{"text": ', r"train\.jsonl, line 2: this is not JSON \(.*, column 10\)"),
    (".jsonl", b'["a", 0]', r"line 1: this is not an object"),
    (".jsonl", b"[" * 100_000, r"line 1: this JSON is unreadable \(RecursionError\)"),
    (".jsonl", b'{"label": ' + b"9" * 5000 + b"}", r"line 1: this JSON is unreadable \(ValueError\)"),
    (".jsonl", b'{"text": "a", "label": 0}\n\n{"text": "b"}', r"line 3: there is no 'label', which the first row has"),
    (".jsonl", b'{"text": "a"}', r"line 1: there is no column 'label' for 'label'; the columns are 'text'"),
    (".jsonl", b'{"text": 5, "label": 0}', r"line 1: 'text' is 5, but must be a text"),
    (".jsonl", b'{"text": null, "label": 0}', r"line 1: 'text' is None, but must be a text"),
    (".jsonl", b'{"text": "\\ud800", "label": 0}', r"line 1: 'text' holds an unpaired surrogate"),
    (".jsonl", b'{"text": "a", "label": 2}', r"line 1: label 2 is none of task 'one': bad, good, or 0 to 1"),
    (".jsonl", b'{"text": "a", "label": -1}', r"line 1: label -1 is none"),
    (".jsonl", b'{"text": "a", "label": true}', r"line 1: label True is none"),
    (".jsonl", b'{"text": "a", "label": 0.5}', r"line 1: label 0.5 is none"),
    (".jsonl", b'{"text": "a", "label": NaN}', r"line 1: label nan is none"),
    (".jsonl", b'{"text": "a", "label": [1]}', r"line 1: label \[1\] is none"),
    (".jsonl", b'{"text": "a", "label": "\xff"}', r"line 1: this is not UTF-8"),
    (".csv", b"text,label\na,bad\nb,\xe9", r"line 3: this is not UTF-8 text"),
    (".csv", b"text,label\na\n", r"line 2: there are 1 columns, but 2 at the top"),
    (".csv", b'text,label\n"a\nb",bad\nc,d,bad\n', r"line 4: there are 3 columns"),
    (".csv", b'text,label\n"a', r"line 2: this is not a valid table"),
    (".csv", b"text,label\na,great\n", r"line 2: label 'great' is none of task 'one'"),
    (".csv", b"text,label\n", r"train\.csv has no rows"),
    (".csv", b"a,bad\nb,good\n", r"line 2: there is no column 'text'"),
    (".tsv", b"txt\tlabel\na\tbad\n", r"line 2: there is no column 'text' for 'text'; the columns are 'txt', 'label'"),
    (".tsv", b"a\tbad\nb\tgreat\n", r"line 2: label 'great' is none"),
    (".parquet", b"", r"train\.parquet is not a readable parquet file"),
    (".parquet", b"PAR1 and nothing of the kind PAR1", r"train\.parquet is not a readable parquet file"),
]


@pytest.mark.parametrize(("suffix", "content", "message"), BAD_FILES)
def test_a_bad_file_is_reported_with_its_line(tmp_path: Path, suffix: str, content: bytes, message: str) -> None:
    (tmp_path / f"train{suffix}").write_bytes(content)
    write(tmp_path / "test.jsonl", some_records(4))
    with pytest.raises(DataError, match=message):
        load_splits(ONE, data_dir=tmp_path, k_shot=1)


def test_a_parquet_row_is_named(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [{"text": "a", "label": 0}, {"text": None, "label": 1}])
    write(tmp_path / "test.jsonl", some_records(4))
    with pytest.raises(DataError, match=r"train\.parquet, row 2: 'text' is None, but must be a text"):
        load_splits(ONE, data_dir=tmp_path, k_shot=1)


def test_missing_folders_and_files_are_named(folder: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read the folder .*nowhere: No such file"):
        load_splits(ONE, data_dir=folder / "nowhere")
    (folder / "test.jsonl").unlink()
    with pytest.raises(DataError, match=r"has no test\.jsonl or test\.csv or test\.tsv or test\.parquet"):
        load_splits(ONE, data_dir=folder)
    (folder / "test.jsonl").mkdir()
    with pytest.raises(DataError, match=r"cannot read .*test\.jsonl: Is a directory"):
        load_splits(ONE, data_dir=folder)


@pytest.mark.parametrize("name", ["file", "a" * 300, "nul\0"])
def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=f"cannot read the folder .*{name}"):
        load_splits(ONE, data_dir=tmp_path / name)


def test_two_files_for_one_split_are_refused(folder: Path) -> None:
    write(folder / "train.csv", some_records(4))
    with pytest.raises(DataError, match=r"several files for train \(train\.jsonl, train\.csv\)"):
        load_splits(ONE, data_dir=folder)


def test_too_few_examples_of_a_class_are_counted(folder: Path) -> None:
    message = (
        r"train\.jsonl: each class needs 32 examples \(16 for training and 16 for development\), but class "
        r"'bad' has 10, 'good' has 10: lower --k_shot to 5, or add examples"
    )
    with pytest.raises(DataError, match=message):
        load_splits(ONE, data_dir=folder)
    write(folder / "dev.jsonl", some_records(5))
    message = r"dev\.jsonl: each class needs 3 examples \(k_shot 3\), but class 'good' has 2"
    with pytest.raises(DataError, match=message):
        load_splits(ONE, data_dir=folder, k_shot=3)
    write(folder / "train.jsonl", [{"text": str(i), "label": 0} for i in range(9)])
    with pytest.raises(DataError, match=r"but class 'good' has 0: add examples"):
        load_splits(ONE, data_dir=folder, k_shot=3)


def test_a_byte_order_mark_and_windows_line_ends_are_no_part_of_the_data(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_bytes(b"\xef\xbb\xbftext,label\r\na,bad\r\nb,good\r\n" + b"a,bad\r\nb,good\r\n")
    (tmp_path / "test.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a", "label": "good"}\r\n')
    splits = load_splits(ONE, data_dir=tmp_path, k_shot=1)
    assert splits.test == [Row("a", None, 1)]
    assert labels_of(splits.train) == {0: 1, 1: 1}


def test_separators_inside_texts_end_no_line(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", some_records(4))
    (tmp_path / "test.jsonl").write_text('{"text": "a\u2028b\x85c", "label": 0}', encoding="utf-8")
    assert load_splits(ONE, data_dir=tmp_path, k_shot=1).test == [Row("a\u2028b\x85c", None, 0)]


@pytest.mark.parametrize(
    ("value", "labels", "found"),
    [
        (1, ("bad", "good"), 1),
        ("1", ("bad", "good"), 1),
        (" good ", ("bad", "good"), 1),
        (1.0, ("bad", "good"), 1),
        ("1.5", ("bad", "good"), None),
        (5, ("1", "3", "5"), 2),
        ("5", ("1", "3", "5"), 2),
        (0, ("1", "3", "5"), 0),
        (float("inf"), ("bad", "good"), None),
        (None, ("bad", "good"), None),
        (10**400, ("bad", "good"), None),
        ("9" * 5000, ("bad", "good"), None),
    ],
)
def test_a_label_is_a_name_else_a_position(value: Any, labels: tuple[str, ...], found: int | None) -> None:
    assert label_index(value, labels) == found


JUNK = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


def read_or_refuse(task: Task, path: Path) -> None:
    """Read a file of any bytes: rows with valid labels, or a BbtFastError."""
    try:
        records = read_records(path, lambda first: None)
        columns = Columns(task, list(records[0].values), {}, str(path))
        for record in records:
            assert columns.row(record).label in range(len(task.labels))
    except BbtFastError:
        return


@settings(max_examples=200)
@given(content=st.binary(max_size=300), suffix=st.sampled_from(sorted(READERS)))
def test_whatever_bytes_a_file_holds_only_our_errors_come_out(tmp_path: Path, content: bytes, suffix: str) -> None:
    (tmp_path / f"train{suffix}").write_bytes(content)
    read_or_refuse(ONE, tmp_path / f"train{suffix}")


@settings(max_examples=100)
@given(rows=st.lists(st.dictionaries(st.sampled_from(["text", "label", "x"]), JUNK), min_size=1, max_size=3))
def test_whatever_values_a_file_holds_only_our_errors_come_out(tmp_path: Path, rows: Records) -> None:
    write(tmp_path / "train.jsonl", rows)
    read_or_refuse(ONE, tmp_path / "train.jsonl")


@settings(max_examples=60)
@given(data=st.data())
def test_a_damaged_parquet_file_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "train.parquet"
    write(path, some_records(4))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    read_or_refuse(ONE, path)


def test_the_demo_brings_its_own_data() -> None:
    splits = load_splits(load_task("demo"))
    assert labels_of(splits.train) == {0: 16, 1: 16}
    assert len(splits.test) == 500


def test_a_task_without_data_says_what_to_give() -> None:
    with pytest.raises(UsageError, match=r"'one' names no data set on the hub: give the folder .* --data_dir"):
        load_splits(ONE)
    with pytest.raises(UsageError, match=r"'demo' names no data set"):
        load_splits(replace(ONE, name="demo", path=Path("demo.yaml")))


def test_choices_are_lettered_and_the_answer_is_its_place_among_them(tmp_path: Path) -> None:
    record = {"context": ["one ", "two"], "question": "q", "choice": ["x", "y", "z"], "answer": "y"}
    (row,) = [Columns(load_task("c3"), list(record), {}, "here").row(Record("here", record))]
    assert row == Row("one two", 'q"。选项"A、x;B、y;C、z;', 1)
    with pytest.raises(DataError, match="here: label 'w' is none of task 'c3'"):
        Columns(load_task("c3"), list(record), {}, "here").row(Record("here", {**record, "answer": "w"}))


def test_yelp_s_own_spelling_of_line_breaks_is_undone(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", some_records(4))
    (tmp_path / "test.jsonl").write_text(json.dumps({"text": r'Good.\n\""Very\""  ', "label": 1}), encoding="utf-8")
    splits = load_splits(load_task("yelp"), data_dir=tmp_path, k_shot=1)
    assert splits.test == [Row('Good. "Very"', None, 1)]


REAL = {
    "sst2": 872, "yelp_polarity": 646, "ag_news": 2000, "dbpedia_14": 1988, "mrpc": 408, "rte": 277, "snli": 1998,
    "trec": 500, "subj": 1000,
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_the_real_samples_load(name: str, shared_file: Callable[..., Path]) -> None:
    splits: Splits = load_splits(load_task(name), data_dir=shared_file("data", name))
    assert len(splits.test) == REAL[name]
    assert set(labels_of(splits.train).values()) == set(labels_of(splits.dev).values()) == {16}
    assert not any(re.search(r"\\n", row.text_a) for row in splits.train if name == "yelp_polarity")


def test_leaving_test_examples_out_is_logged(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        load_splits(ONE, data_dir=folder, k_shot=1, max_test_examples=2)
    assert "testing on 2 of 6 examples" in caplog.text
