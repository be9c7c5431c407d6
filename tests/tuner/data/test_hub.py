"""Data sets on the hub: a local folder stands for one, since `datasets` loads both alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest

from bbt_fast.export.errors import DataError
from bbt_fast.tuner.data.splits import Row, load_splits
from bbt_fast.tuner.tasks.task import Hub, Task, load_task

ONE = Task("one", ("bad", "good"), {"masked": "{text} {mask}"}, {"masked": (("bad",), ("good",))})
Records = list[dict[str, Any]]


def labels_of(rows: list[Row]) -> Counter[int]:
    return Counter(row.label for row in rows)


@pytest.fixture
def hub(tmp_path: Path) -> Callable[[Any, Records], Hub]:
    """A function that writes a data set as the hub has it, and returns where it lies."""

    def make(feature: Any, records: Records) -> Hub:
        for split in ("train", "validation"):
            data = datasets.Dataset.from_list(records)
            data.cast_column("label", feature).to_parquet(tmp_path / f"{split}.parquet")
        return Hub(id=str(tmp_path), train="train", test="validation")

    return make


def test_hub_data_are_read_by_the_names_of_their_classes(hub: Callable[[Any, Records], Hub]) -> None:
    records = [{"sentence": f"text {i}", "label": i % 3 - 1} for i in range(30)]
    place = hub(datasets.ClassLabel(names=["good", "bad"]), records)
    splits = load_splits(replace(ONE, hub=place, columns={"text": "sentence"}), k_shot=5)
    assert len(splits.test) == 20, "unlabelled rows (-1) are left out"
    assert labels_of(splits.train) == labels_of(splits.dev) == {0: 5, 1: 5}
    for row in splits.train + splits.test:
        assert int(row.text_a.split()[1]) % 3 - 1 == {"good": 0, "bad": 1}[ONE.labels[row.label]]


def test_hub_labels_that_are_bare_numbers_are_positions(hub: Callable[[Any, Records], Hub]) -> None:
    place = hub(datasets.Value("int64"), [{"text": f"text {i}", "label": i % 2} for i in range(8)])
    splits = load_splits(replace(ONE, hub=place), k_shot=1)
    assert [row.label for row in splits.test] == [0, 1] * 4


def test_hub_data_out_of_reach_say_how_to_go_on() -> None:
    with pytest.raises(DataError, match=r"cannot load nyu-mll/glue \(sst2\), split train \(.*\)\. .*--data_dir"):
        load_splits(load_task("sst2"))


def test_a_hub_without_labels_is_refused(hub: Callable[[Any, Records], Hub]) -> None:
    place = hub(datasets.Value("int64"), [{"text": "a", "label": -1}])
    with pytest.raises(DataError, match="split train has no labelled rows"):
        load_splits(replace(ONE, hub=place), k_shot=1)


def test_a_hub_s_columns_are_named_when_none_fits(hub: Callable[[Any, Records], Hub]) -> None:
    place = hub(datasets.Value("int64"), [{"words": "a", "label": 0}])
    with pytest.raises(DataError, match="split train: there is no column 'text' for 'text'; the columns are 'words'"):
        load_splits(replace(ONE, hub=place), k_shot=1)


def test_a_hub_s_bad_label_is_reported_with_its_row(hub: Callable[[Any, Records], Hub]) -> None:
    place = hub(datasets.Value("int64"), [{"text": "a", "label": 0}, {"text": "b", "label": 7}])
    with pytest.raises(DataError, match="split train, row 1: label 7 is none of task 'one'"):
        load_splits(replace(ONE, hub=place), k_shot=1)


def test_choices_on_the_hub_need_no_other_columns(hub: Callable[[Any, Records], Hub]) -> None:
    choices = ["x", "y", "z", "w"]
    records = [
        {"context": ["a"], "question": "q", "choice": choices, "answer": choices[i % 4], "label": 0} for i in range(8)
    ]
    splits = load_splits(replace(load_task("c3"), hub=hub(datasets.Value("int64"), records)), k_shot=1)
    assert [row.label for row in splits.test] == [0, 1, 2, 3] * 2
