"""``bbt-fast tasks``: the list of tasks, and how one of them looks to a model."""

from __future__ import annotations

import argparse
import textwrap
from typing import Any

from ...export.families import family_of
from ..data.columns import Row
from ..data.encoding import TextEncoder
from ..input.options import Options
from ..run.setup import Setup
from ..tasks.presets import resolve
from ..tasks.task import KINDS, Task, load_task, task_names
from .arguments import add_options, given

DESCRIPTION = "List the tasks, or show how one is encoded."
SAMPLES = ("a text to classify", "a second text to compare it with")
"""The texts of an example where no data are given."""
SHOWN_OPTIONS = ("model_name", "data_dir", "column_mapping", "cat_or_add", "n_prompt_tokens", "k_shot", "seed")
"""The options of a run that an encoded example depends on."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command, and its sub-command ``show``."""
    parser.add_argument("--kind", choices=KINDS, default="masked", help="the model kind whose templates are listed")
    actions = parser.add_subparsers(metavar="show NAME")
    show = actions.add_parser("show", help="print an encoded example of one task")
    show.set_defaults(text=show_task)
    show.add_argument("task_name", help="a task's name, or the path of your own task.yaml")
    add_options(show, SHOWN_OPTIONS)


def run(args: argparse.Namespace) -> str:
    """Return the packaged tasks with their classes, sizes, metric, preset, template and label words.

    Args:
        args: ``kind``, the model kind whose templates and label words are shown.
    """
    return "\n\n".join(_summary(load_task(name), args.kind) for name in task_names())


def _summary(task: Task, kind: Any) -> str:
    """Return a few lines about a task."""
    names = f"{task.name} ({', '.join(task.aliases)})" if task.aliases else task.name
    rows = task.hub.rows if task.hub else {}
    preset = {name: value for name, value in vars(task.preset).items() if value is not None}
    facts = [f"{len(task.labels)} classes", task.metric]
    facts += [f"{count:,} {split}" for split, count in rows.items()]
    facts += [f"{name} {value}" for name, value in preset.items()]
    words = ", ".join("/".join(alternatives) for alternatives in task.words(kind))
    return "\n    ".join([f"{names}: {', '.join(facts)}", task.template(kind), *textwrap.wrap(words, 110)])


def show_task(args: argparse.Namespace) -> str:
    """Return one example of a task as a model reads it: tokens, prompt positions, answer position, label-word ids.

    Args:
        args: ``task_name`` and any of ``SHOWN_OPTIONS``. With ``data_dir`` the first training example is shown, else
            ``SAMPLES``.
    """
    task = load_task(args.task_name)
    options = resolve(Options.of(task_name=args.task_name, **given(args, SHOWN_OPTIONS)), task.preset)
    setup = Setup(options, task)
    sample = Row(SAMPLES[0], SAMPLES[1] if len(task.texts) > 1 else None, 0)
    row = setup.splits(options.seed).train[0] if options.data_dir else sample
    return "\n".join([*_facts(setup, row), "", *_token_lines(setup.encoder, row)])


def _facts(setup: Setup, row: Row) -> list[str]:
    """Return what holds for the whole example."""
    task, encoder, options = setup.task, setup.encoder, setup.options
    examples, n = encoder.encode([row]).examples, options.n_prompt_tokens
    answer = int(examples.answer_position)
    read, where = examples.input_ids, "input"
    if examples.decoder_input_ids is not None:
        read, where = examples.decoder_input_ids, "decoder input"
    answer_token = encoder.tokenizer.convert_ids_to_tokens(int(read[0, answer]))
    prompt = f"{n} tokens before position 0"
    if options.cat_or_add == "add":
        prompt = f"{encoder.prompt_start} to {encoder.prompt_start + n - 1}, added to the placeholder tokens there"
    words = [
        f"    {label}: {encoder.tokenizer.convert_ids_to_tokens(token_id)!r}, id {token_id}"
        for label, ids in zip(task.labels, encoder.label_words.classes, strict=True)
        for token_id in ids
    ]
    return [
        f"task {task.name}, {family_of(setup.config).name} model {options.model_name}, {options.cat_or_add} mode",
        f"template: {task.template(encoder.kind)}",
        *(f"{name}: {text}" for name, text in zip(task.texts, row.texts, strict=True)),
        f"class: {task.labels[row.label]}",
        f"prompt positions: {prompt}",
        f"answer position: {answer} in the {where} ({answer_token!r})",
        "label words:",
        *words,
    ]


def _token_lines(encoder: TextEncoder, row: Row) -> list[str]:
    """Return the tokens with their positions and ids, the prompt's own in one line."""
    ids = encoder.encode([row]).examples.input_ids[0].tolist()
    tokens = encoder.tokenizer.convert_ids_to_tokens(ids)
    lines = [f"{i:>5}  {token_id:>7}  {token}" for i, (token_id, token) in enumerate(zip(ids, tokens, strict=True))]
    start, end = encoder.prompt_start, encoder.prompt_start + len(encoder.placeholder_ids)
    if end - start > 2:
        lines[start + 1 : end - 1] = [f"{'...':>5}  {'...':>7}  ({end - start} placeholder tokens)"]
    return lines
