"""``--wording``: the template and label words of the task file, or those of the original implementation."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

import yaml

from .task import TASKS_DIR, Task

ORIGINAL: Final = Path(__file__).resolve().parent / "original.yaml"


def worded(task: Task, wording: Literal["own", "original"], mode: Literal["add", "cat"]) -> Task:
    """Return a task in a wording.

    Args:
        task: as in its file.
        wording: "original" replaces the templates and label words of packaged tasks, and the rule for label tokens of
            every task (``Task.first_tokens``).
        mode: the original's templates for add mode also hold the text between placeholders and input.
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
    """Return the original's templates and label words by the task's name."""
    found: dict[str, Any] = yaml.safe_load(ORIGINAL.read_text(encoding="utf-8"))
    return found
