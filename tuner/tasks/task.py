"""Tasks: the templates of a classification task and the label words of its classes.

A task is a YAML file, packaged (``packaged/``) or the user's own; docs/tasks.md describes the fields.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, get_args

from ...export.errors import UsageError
from ...export.families import Kind
from ..input.coerce import suggest
from ..input.yaml_lines import Value, read_yaml
from ..search.losses import LOSSES
from ..search.metrics import METRICS
from .template import ONE_TEXT, TWO_TEXTS, problem_of, text_names

KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
FIELDS: Final = (
    "name", "aliases", "labels", "templates", "more_templates", "label_words", "use_words", "metric", "columns",
    "replace", "hub", "preset", "first_tokens",
)  # fmt: skip
"""The keys of a task file."""
TASKS_DIR: Final = Path(__file__).resolve().parent / "packaged"
LABEL: Final = "label"
UseWords = Literal["first", "all"]


@dataclass(frozen=True)
class Preset:
    """The papers' options for a task; None keeps the algorithm's default, and any option overrides it."""

    loss_type: str | None = None
    budget: int | None = None
    sigma: float | None = None
    alpha: float | None = None


@dataclass(frozen=True)
class Hub:
    """A task's data set on the Hugging Face hub."""

    id: str
    """Name with its owner, such as ``nyu-mll/glue``, or a local folder that `datasets` can load."""
    train: str
    """The split that few-shot examples are drawn from."""
    test: str
    """The labelled split that the whole test uses."""
    config: str | None = None
    rows: Mapping[str, int] = field(default_factory=dict)
    """The numbers of labelled rows in ``train`` and ``test``, for information."""


@dataclass(frozen=True)
class Task:
    """A text-classification task."""

    name: str
    labels: tuple[str, ...]
    """The classes' names; a class is its position in this tuple."""
    templates: Mapping[Kind, str]
    """Per model kind, the text around ``{text}`` (or ``{text_a}`` and ``{text_b}``) and ``{mask}``."""
    label_words: Mapping[Kind, tuple[tuple[str, ...], ...]]
    """Per model kind and class, the candidate words of the class; only words of one token count."""
    use_words: UseWords = "first"
    """Which of them to use: the first, or all, whose probabilities are averaged."""
    more_templates: Mapping[Kind, tuple[str, ...]] = field(default_factory=dict)
    """Per model kind, further wordings of the template for training texts (``--templates``)."""
    metric: str = "accuracy"
    """A key of ``metrics.METRICS``."""
    aliases: tuple[str, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    """The data's columns for ``text``, ``text_a``, ``text_b`` and ``label`` if they have other names, or patterns of
    several columns (see ``data/columns.py``)."""
    replace: Mapping[str, str] = field(default_factory=dict)
    """Substitutions for strings in the data."""
    hub: Hub | None = None
    preset: Preset = Preset()
    first_tokens: bool = False
    """Whether the label token of a word is its first token without a leading space, as in the original implementation.
    Otherwise the word must be one token in the template."""
    path: Path | None = None
    """The task file."""

    @property
    def texts(self) -> tuple[str, ...]:
        """Names of the task's text columns: ``text``, or ``text_a`` and ``text_b``."""
        return text_names(next(iter(self.templates.values())))

    def clean(self, text: str) -> str:
        """Return a text with the task's substitutions, stripped."""
        for old, new in self.replace.items():
            text = text.replace(old, new)
        return text.strip()

    def as_dict(self, kind: Kind) -> dict[str, Any]:
        """Return the contents of a task file for one model kind; ``task_of`` reads them."""
        hub = None if self.hub is None else {k: v for k, v in asdict(self.hub).items() if v}
        fields = {
            "name": self.name,
            "labels": list(self.labels),
            "templates": {kind: self.template(kind)},
            "label_words": {kind: [list(words) for words in self.words(kind)]},
            "use_words": self.use_words if self.use_words != "first" else None,
            "metric": self.metric,
            "columns": dict(self.columns),
            "replace": dict(self.replace),
            "hub": hub,
            "first_tokens": self.first_tokens,
        }
        return {name: value for name, value in fields.items() if value}

    def template(self, kind: Kind) -> str:
        """Return the template for a model kind.

        Raises:
            UsageError: if the task has none.
        """
        if kind not in self.templates:
            raise UsageError(
                f"task {self.name!r} has no template for {kind} models, only for {', '.join(self.templates)}. Add one "
                f"under `templates` and `label_words` in its file, or take another model."
            )
        return self.templates[kind]

    def wordings(self, kind: Kind, count: int) -> tuple[str, ...]:
        """Return the template for a model kind and ``count - 1`` of its other wordings.

        Raises:
            UsageError: if the task has fewer.
        """
        found = (self.template(kind), *self.more_templates.get(kind, ()))
        if count > len(found):
            raise UsageError(
                f"templates is {count}, but task {self.name!r} has {len(found)} for {kind} models. Lower --templates, "
                "or write more under `more_templates` in a task file of your own (docs/tasks.md)."
            )
        return found[:count]

    def words(self, kind: Kind) -> tuple[tuple[str, ...], ...]:
        """Return the label words for a model kind: per class, the candidates in order of preference.

        Raises:
            UsageError: if the task has none.
        """
        self.template(kind)  # both have the same kinds
        return self.label_words[kind]


def load_task(name_or_path: str | Path) -> Task:
    """Return a packaged task by its name or alias, or read a user's YAML file.

    Raises:
        UsageError: if it is neither; the message lists the names.
        DataError: if the file is not a valid task; the message names the line.
    """
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        return read_task(path)
    known = _packaged()
    name = str(name_or_path).lower()
    if name in known:
        return known[name]
    raise UsageError(
        f"unknown task {str(name_or_path)!r}.{suggest(name, known)} The tasks are {', '.join(task_names())}; a task "
        "of your own is a file that ends in .yaml (docs/tasks.md)."
    )


def task_names() -> tuple[str, ...]:
    """Return the names of the packaged tasks, sorted."""
    return tuple(sorted({task.name for task in _packaged().values()}))


@cache
def _packaged() -> dict[str, Task]:
    """Return the packaged tasks by name and by alias."""
    found: dict[str, Task] = {}
    for path in sorted(TASKS_DIR.glob("*.yaml")):
        task = read_task(path)
        for name in (task.name, *task.aliases):
            found[name] = task
    return found


def read_task(path: Path) -> Task:
    """Read a task file.

    Raises:
        DataError: if it is not a valid task; the message names the line.
    """
    return task_of(read_yaml(path), path)


def task_of(value: Value, path: Path) -> Task:
    """Read a task from the contents of a file.

    Raises:
        DataError: if it is not a valid task.
    """
    parts = value.fields(FIELDS, required=("labels", "templates", "label_words"))
    labels = parts["labels"].texts()
    if len(labels) < 2:
        raise parts["labels"].error("needs at least two classes.")
    templates = _templates(_per_kind(parts["templates"]))
    more = _more_templates(_per_kind(parts["more_templates"]), templates) if "more_templates" in parts else {}
    words = {kind: _label_words(value, labels) for kind, value in _per_kind(parts["label_words"]).items()}
    if unpaired := sorted(set(templates) ^ set(words)):
        raise parts["label_words"].error(f"and templates must name the same model kinds; {unpaired[0]} is only in one.")
    optional: dict[str, Any] = {"name": path.stem} | _read(parts, OPTIONAL)
    if optional.get("metric") == "f1" and len(labels) != 2:
        raise parts["metric"].error(f"is f1, which is defined for two classes here, but there are {len(labels)}.")
    return Task(labels=labels, templates=templates, label_words=words, more_templates=more, path=path, **optional)


def _read(parts: Mapping[str, Value], readers: Readers) -> dict[str, Any]:
    """Read those fields that are present; absent ones keep the dataclass's defaults."""
    return {name: read(parts[name]) for name, read in readers.items() if name in parts}


def _per_kind(value: Value) -> dict[Kind, Value]:
    """Read a mapping from model kinds; any other value holds for the two kinds whose template has a mask."""
    if value.is_mapping:
        fields = value.fields(KINDS)
        return {kind: fields[kind] for kind in KINDS if kind in fields}
    return {"masked": value, "seq2seq": value}


def _templates(values: Mapping[Kind, Value]) -> dict[Kind, str]:
    """Read the templates; all must name the same texts."""
    found: dict[Kind, str] = {}
    for kind, value in values.items():
        found[kind] = _template(value, kind, next(iter(found.values()), None))
    return found


def _more_templates(values: Mapping[Kind, Value], templates: Mapping[Kind, str]) -> dict[Kind, tuple[str, ...]]:
    """Read the other wordings of the templates."""
    for kind, value in values.items():
        if kind not in templates:
            raise value.error(f"has wordings for {kind} models, which `templates` has none for.")
    first = next(iter(templates.values()))
    return {kind: tuple(_template(item, kind, first) for item in value.items()) for kind, value in values.items()}


def _template(value: Value, kind: Kind, first: str | None) -> str:
    """Read a template, which must name the same texts as the first."""
    template = value.text()
    if problem := problem_of(template, kind):
        raise value.error(problem)
    if first is not None and text_names(template) != (names := text_names(first)):
        raise value.error(f"must hold the same texts as the first template: {' and '.join(names)}.")
    return template


def _label_words(value: Value, labels: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Read one word, or a list of alternatives, per class."""
    words = tuple((item.text(),) if item.is_text else item.texts() for item in value.items())
    if len(words) < len(labels):
        raise value.error(
            f"has {len(words)} entries for {len(labels)} classes: {labels[len(words)]!r} has no label word."
        )
    if len(words) > len(labels):
        raise value.error(f"has {len(words)} entries, but there are {len(labels)} classes.")
    return words


def _columns(value: Value) -> dict[str, str]:
    """Read the data's names for the columns."""
    found = {key: item.text() for key, item in value.fields((*ONE_TEXT, *TWO_TEXTS, LABEL)).items()}
    for key, item in value.fields().items():
        try:
            list(string.Formatter().parse(found[key]))
        except ValueError as error:
            raise item.error(f"cannot be read: {error}.") from None
    return found


def _hub(value: Value) -> Hub:
    return Hub(**_read(value.fields(HUB, required=("id", "train", "test")), HUB))


def _preset(value: Value) -> Preset:
    return Preset(**_read(value.fields(PRESET), PRESET))


Readers = Mapping[str, Callable[[Value], Any]]
HUB: Final[Readers] = {
    "id": Value.text,
    "config": Value.text,
    "train": Value.text,
    "test": Value.text,
    "rows": lambda value: {key: item.count() for key, item in value.fields(("train", "test")).items()},
}
PRESET: Final[Readers] = {
    "loss_type": lambda value: value.one_of(LOSSES),
    "budget": Value.count,
    "sigma": Value.number,
    "alpha": Value.number,
}
OPTIONAL: Final[Readers] = {
    "name": Value.text,
    "aliases": Value.texts,
    "use_words": lambda value: value.one_of(get_args(UseWords)),
    "metric": lambda value: value.one_of(METRICS),
    "columns": _columns,
    "replace": lambda value: {key: item.any_text() for key, item in value.fields().items()},
    "hub": _hub,
    "preset": _preset,
    "first_tokens": Value.flag,
}
