"""bbt_config.json: the description of a tuned prompt that its use requires: model, task and mode."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

from ...export.errors import ArtifactError, BbtFastError, UsageError
from ...export.families import Kind
from ..input.coerce import coerce
from ..input.yaml_lines import value_of
from ..tasks.task import Task, load_task, task_names, task_of
from .files import read_json, write_json

PROMPT_CONFIG = "bbt_config.json"
FORMAT = 1


@dataclass(frozen=True)
class PromptConfig:
    """The description of a tuned prompt."""

    base_model: str
    """Hub id or folder of the frozen model, or "demo" for the packaged one."""
    base_model_revision: str | None
    """The hub's commit of the model."""
    embeddings: str
    """A digest of its word embeddings, which identifies the model."""
    algorithm: str
    cat_or_add: str
    n_prompt_tokens: int
    k_shot: int
    seed: int
    kind: Kind
    """The model's kind, which selects the task's template."""
    task: Task
    label_bias: tuple[float, ...] | None = None
    """What is added to the logit of each of the task's label words, class after class."""

    def write(self, folder: Path) -> None:
        """Write the description into a run's folder.

        Raises:
            ArtifactError: if the folder is not writable.
        """
        content = {**vars(self), "task": self.task.as_dict(self.kind)}
        write_json(folder / PROMPT_CONFIG, {"format": FORMAT, **content})


def read_prompt_config(folder: Path) -> PromptConfig:
    """Return the description of the prompt in a folder.

    Raises:
        UsageError: if there is no prompt, or a later version wrote the file.
        ArtifactError: if the file is damaged.
    """
    path = folder / PROMPT_CONFIG
    if not path.exists():
        seeds = sorted(child.parent.name for child in folder.glob(f"*/{PROMPT_CONFIG}"))
        way_out = f"give one of its seeds, such as {folder / seeds[0]}" if seeds else "give the folder of a run"
        raise UsageError(f"{folder} holds no tuned prompt: it has no {PROMPT_CONFIG}; {way_out}.")
    values = read_json(path)
    version = values.pop("format", None)
    if version != FORMAT:
        raise UsageError(f"{path} has format {version}, but this version of bbt-fast reads {FORMAT}: update bbt-fast.")
    try:
        task = task_of(value_of(values.pop("task"), path, "task"), path)
        kinds = get_type_hints(PromptConfig)
        typed: dict[str, Any] = {name: coerce(name, value, kinds[name]) for name, value in values.items()}
        return PromptConfig(**typed, task=_packaged(task, typed["kind"]))
    except (BbtFastError, TypeError, KeyError) as error:
        raise ArtifactError(f"{path} is damaged ({error}).") from error


def _packaged(task: Task, kind: Kind) -> Task:
    """Return the packaged task if a saved one differs from it only in label words: some have built-in data."""
    if task.name not in task_names():
        return task
    known = load_task(task.name)
    worded = replace(known, label_words={**known.label_words, **task.label_words}, use_words=task.use_words)
    same = kind in known.templates and worded.as_dict(kind) == task.as_dict(kind)
    return worded if same else task
