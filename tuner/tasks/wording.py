"""How a task is put to a model: as its file has it, or in the original implementation's words (``--wording``)."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

import yaml

from .task import TASKS_DIR, Task

ORIGINAL: Final = Path(__file__).resolve().parent / "original.yaml"


def worded(task: Task, wording: Literal["own", "original"], mode: Literal["add", "cat"]) -> Task:
    """Return a task in the wording that was asked for.

    Args:
        task: as its file has it.
        wording: "original" changes the packaged tasks' templates and label words, and of every task which token stands
            for a class.
        mode: the original's templates of add mode begin with what stands between placeholders and text.
    """
    if wording == "own":
        return task
    packaged = task.path is not None and task.path.parent == TASKS_DIR
    other = _original()[task.name] if packaged and task.name in _original() else {}
    words = {kind: tuple((word,) for word in words) for kind, words in other.get("label_words", {}).items()}
    return replace(
        task,
        templates={**task.templates, **other.get(mode, {})},
        label_words={**task.label_words, **words},
        first_tokens=True,
    )


@cache
def _original() -> dict[str, Any]:
    """Return what differs, by the task's name."""
    found: dict[str, Any] = yaml.safe_load(ORIGINAL.read_text(encoding="utf-8"))
    return found
