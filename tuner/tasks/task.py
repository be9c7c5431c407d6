"""Tasks: what is asked of the model, and which words are its answers.

A task is a YAML file, packaged (``packaged/``) or the user's own; docs/tasks.md describes the fields.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, cast, get_args

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
    """What the papers tune a task with; None leaves the algorithm's default, and any option overrides it."""

    loss_type: str | None = None
    budget: int | None = None
    sigma: float | None = None
    alpha: float | None = None


@dataclass(frozen=True)
class Hub:
    """Where a task's data lie on the Hugging Face hub."""

    id: str
    """Name with its owner, such as ``nyu-mll/glue``, or a local folder that `datasets` can load."""
    train: str
    """The split that few-shot examples are drawn from."""
    test: str
    """The labelled split that is used whole for the test."""
    config: str | None = None
    rows: Mapping[str, int] = field(default_factory=dict)
    """How many labelled rows ``train`` and ``test`` have, for information."""


@dataclass(frozen=True)
class Task:
    """A text-classification task."""

    name: str
    labels: tuple[str, ...]
    """The classes' names; a class is its position in this tuple."""
    templates: Mapping[Kind, str]
    """Per model kind, the text around ``{text}`` (or ``{text_a}`` and ``{text_b}``) and ``{mask}``."""
    label_words: Mapping[Kind, tuple[tuple[str, ...], ...]]
    """Per model kind and class, the words that can stand for the class; those count that are one token."""
    use_words: UseWords = "first"
    """How many of them do: the first, or all together, as likely as their mean."""
    more_templates: Mapping[Kind, tuple[str, ...]] = field(default_factory=dict)
    """Per model kind, other wordings of the template, which training texts can be written in besides."""
    metric: str = "accuracy"
    """A key of ``metrics.METRICS``."""
    aliases: tuple[str, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    """The data's column for ``text``, ``text_a``, ``text_b`` and ``label`` where it has another name, or a pattern of
    several columns (see ``data/columns.py``)."""
    replace: Mapping[str, str] = field(default_factory=dict)
    """Strings that the data spell in a way of their own, and what to read instead."""
    hub: Hub | None = None
    preset: Preset = Preset()
    first_tokens: bool = False
    """Whether a class stands for the first token of its word, spelled without a space before it, as in the original
    implementation, and not for the only token of the word where the answer stands."""
    path: Path | None = None
    """The file it was read from."""

    @property
    def texts(self) -> tuple[str, ...]:
        """Names of the task's text columns: ``text``, or ``text_a`` and ``text_b``."""
        return text_names(next(iter(self.templates.values())))

    def clean(self, text: str) -> str:
        """Return a text as the model is given it: with what the data spell otherwise replaced, and stripped."""
        for old, new in self.replace.items():
            text = text.replace(old, new)
        return text.strip()

    def as_dict(self, kind: Kind) -> dict[str, Any]:
        """Return what a task file says of the task, for one model kind; ``task_of`` reads it."""
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
        return self.templates[self._with(kind)]

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
        return self.label_words[self._with(kind)]

    def _with(self, kind: Kind) -> Kind:
        if kind not in self.templates:
            raise UsageError(
                f"task {self.name!r} has no template for {kind} models, only for {', '.join(self.templates)}. Add one "
                f"under `templates` and `label_words` in its file, or take another model."
            )
        return kind


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
    metric = parts["metric"].one_of(METRICS) if "metric" in parts else "accuracy"
    if metric == "f1" and len(labels) != 2:
        raise parts["metric"].error(f"is f1, which is defined for two classes here, but there are {len(labels)}.")
    return Task(
        name=parts["name"].text() if "name" in parts else path.stem,
        labels=labels,
        templates=templates,
        label_words=words,
        use_words=cast("UseWords", parts["use_words"].one_of(get_args(UseWords)) if "use_words" in parts else "first"),
        more_templates=more,
        metric=metric,
        aliases=parts["aliases"].texts() if "aliases" in parts else (),
        columns=_columns(parts["columns"]) if "columns" in parts else {},
        replace={key: item.any_text() for key, item in parts["replace"].fields().items()} if "replace" in parts else {},
        hub=_hub(parts["hub"]) if "hub" in parts else None,
        preset=_preset(parts["preset"]) if "preset" in parts else Preset(),
        first_tokens="first_tokens" in parts and parts["first_tokens"].flag(),
        path=path,
    )


def _per_kind(value: Value) -> dict[Kind, Value]:
    """Read a mapping from model kinds; anything else stands for the two kinds whose template holds a mask."""
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
    """Read the data's names for our columns."""
    found = {key: item.text() for key, item in value.fields((*ONE_TEXT, *TWO_TEXTS, LABEL)).items()}
    for key, item in value.fields().items():
        try:
            list(string.Formatter().parse(found[key]))
        except ValueError as error:
            raise item.error(f"cannot be read: {error}.") from None
    return found


def _hub(value: Value) -> Hub:
    parts = value.fields(("id", "config", "train", "test", "rows"), required=("id", "train", "test"))
    rows = parts["rows"].fields(("train", "test")) if "rows" in parts else {}
    return Hub(
        id=parts["id"].text(),
        train=parts["train"].text(),
        test=parts["test"].text(),
        config=parts["config"].text() if "config" in parts else None,
        rows={key: item.count() for key, item in rows.items()},
    )


def _preset(value: Value) -> Preset:
    parts = value.fields(("loss_type", "budget", "sigma", "alpha"))
    return Preset(
        loss_type=parts["loss_type"].one_of(LOSSES) if "loss_type" in parts else None,
        budget=parts["budget"].count() if "budget" in parts else None,
        sigma=parts["sigma"].number() if "sigma" in parts else None,
        alpha=parts["alpha"].number() if "alpha" in parts else None,
    )
