"""The training, development and test examples of a run; docs/tasks.md describes their sources."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from ...export.errors import DataError, UsageError
from ..tasks.task import Task
from .columns import Row, check_column_mapping, parse_column_mapping
from .pools import Pool
from .sources import folder_source, packaged_source, test_pool

logger = logging.getLogger(__name__)

TEST_SEED: Final = 0
"""Seed of the choice by ``max_test_examples``, which is the same for every run."""

__all__ = ["Row", "Splits", "load_splits", "parse_column_mapping"]


@dataclass(frozen=True)
class Splits:
    """The examples of a run."""

    train: list[Row]
    dev: list[Row]
    test: list[Row]


def load_splits(
    task: Task,
    *,
    data_dir: str | Path | None = None,
    k_shot: int = 16,
    seed: int = 42,
    column_mapping: Mapping[str, str] | None = None,
    max_test_examples: int | None = None,
    fits: Callable[[Sequence[Row]], list[bool]] | None = None,
) -> Splits:
    """Load a task's data and draw its few-shot examples.

    Args:
        task: the task.
        data_dir: a folder with train and test files (jsonl, csv, tsv or parquet), or with few-shot folders
            ``<k>-<seed>``, whose examples are used unchanged. None uses the task's own data.
        k_shot: examples per class for training, and as many others for development (from the dev file, if the folder
            has one).
        seed: the seed of the draw.
        column_mapping: the data's names for ``text``, ``text_a``, ``text_b`` and ``label``.
        max_test_examples: test on this many random examples, the same for every seed; None for all.
        fits: returns which rows to accept; None for all.

    Raises:
        UsageError: if a value is out of range, or the task names no data.
        DataError: if the data are missing or malformed, or too few for k_shot.
    """
    for name, value in (("k_shot", k_shot), ("max_test_examples", max_test_examples)):
        if value is not None and value < 1:
            raise UsageError(f"{name} is {value}, but must be at least 1.")
    mapping = column_mapping or {}
    check_column_mapping(mapping)
    if data_dir is None:
        source = packaged_source(task, mapping)
    else:
        source = folder_source(task, Path(data_dir), k_shot, seed, mapping)
    if fits is not None:
        other = None if source.dev is None else _fitting(source.dev, fits)
        source = replace(source, train=_fitting(source.train, fits), dev=other, test=_fitting(source.test, fits))
    test = _test_rows(source.test, max_test_examples)
    if source.dev is None:
        train, dev = _draw(source.train, task, k_shot, seed, parts=2)
        return Splits(train, dev, test)
    if source.drawn:
        for pool in (source.train, source.dev):
            _check_counts(pool, task, k_shot, parts=1)
        return Splits(source.train.all(), source.dev.all(), test)
    (train,), (dev,) = (_draw(pool, task, k_shot, seed, parts=1) for pool in (source.train, source.dev))
    return Splits(train, dev, test)


def load_test_rows(
    task: Task,
    *,
    data_dir: str | Path | None,
    k_shot: int,
    seed: int,
    column_mapping: Mapping[str, str] | None = None,
    max_test_examples: int | None = None,
    fits: Callable[[Sequence[Row]], list[bool]] | None = None,
) -> list[Row]:
    """Load only a task's test examples, the same that ``load_splits`` returns for these arguments.

    Raises:
        UsageError: if a value is out of range, or the task names no data.
        DataError: if the data are missing or malformed.
    """
    if max_test_examples is not None and max_test_examples < 1:
        raise UsageError(f"max_test_examples is {max_test_examples}, but must be at least 1.")
    folder = None if data_dir is None else Path(data_dir)
    pool = test_pool(task, folder, k_shot, seed, column_mapping or {})
    return _test_rows(pool if fits is None else _fitting(pool, fits), max_test_examples)


def few_shot_indices(labels: list[int], k_shot: int, seed: int, parts: int) -> list[list[int]]:
    """Draw disjoint few-shot sets: shuffle, then give each class's first k to the first set, its next k to the next.

    Algorithm and generator are the original implementation's: the same seed and rows give the same examples.

    Args:
        labels: the class of each row.
        k_shot: examples per class in a set, at most.
        seed: the seed of the shuffle.
        parts: the number of sets.

    Returns:
        Per set, positions in ``labels``, in the shuffled order.
    """
    order = np.random.RandomState(seed).permutation(len(labels))
    sets: list[list[int]] = [[] for _ in range(parts)]
    seen: dict[int, int] = {}
    for position in order.tolist():
        rank = seen.get(labels[position], 0)
        seen[labels[position]] = rank + 1
        if rank < parts * k_shot:
            sets[rank // k_shot].append(position)
    return sets


def _fitting(pool: Pool, fits: Callable[[Sequence[Row]], list[bool]]) -> Pool:
    """Return a pool without the rows that do not fit."""
    rows = pool.all()
    kept = [row for row, fit in zip(rows, fits(rows), strict=True) if fit]
    if len(kept) < len(rows):
        logger.info("%s: %d of %d texts are too long and are left out", pool.place, len(rows) - len(kept), len(rows))
    return Pool(pool.place, [row.label for row in kept], lambda chosen: [kept[i] for i in chosen])


def _draw(pool: Pool, task: Task, k_shot: int, seed: int, parts: int) -> list[list[Row]]:
    """Draw few-shot sets from a pool."""
    _check_counts(pool, task, k_shot, parts)
    return [pool.rows(chosen) for chosen in few_shot_indices(pool.labels, k_shot, seed, parts)]


def _check_counts(pool: Pool, task: Task, k_shot: int, parts: int) -> None:
    """Raise ``DataError`` if a class has too few rows."""
    counts = [pool.labels.count(label) for label in range(len(task.labels))]
    needed = parts * k_shot
    lacking = [f"{name!r} has {count}" for name, count in zip(task.labels, counts, strict=True) if count < needed]
    if not lacking:
        return
    uses = f"{k_shot} for training and {k_shot} for development" if parts == 2 else f"k_shot {k_shot}"
    most = min(counts) // parts
    way_out = f"lower --k_shot to {most}, or add examples" if most else "add examples"
    raise DataError(
        f"{pool.place}: each class needs {needed} examples ({uses}), but class {', '.join(lacking)}: {way_out}."
    )


def _test_rows(pool: Pool, max_test_examples: int | None) -> list[Row]:
    """Return the whole test split, or a random part of it."""
    n_rows = len(pool.labels)
    if max_test_examples is None or max_test_examples >= n_rows:
        return pool.all()
    chosen = np.random.RandomState(TEST_SEED).permutation(n_rows)[:max_test_examples]
    logger.info("testing on %d of %d examples (max_test_examples)", max_test_examples, n_rows)
    return pool.rows(sorted(chosen.tolist()))
