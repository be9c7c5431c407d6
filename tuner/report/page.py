"""The comparison as one self-contained HTML page: no script, no font, no request."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.metadata import version
from importlib.resources import files

from ..artifacts.result import Result
from .curves import RunView
from .groups import Group, rows
from .svg import COLOURS, Series, line_chart

MIB = "MiB"
TUNED = ("test", "dev", "train")
"""The columns whose best figure is bold."""


def report_page(groups: Sequence[Group]) -> str:
    """Return the page about groups of runs."""
    runs = sum(len(group.runs) for group in groups)
    tasks = sorted({run.options.task_name for group in groups for run in group.runs})
    models = sorted({str(run.options.model_name) for group in groups for run in group.runs})
    style = (files(__package__) / "page.css").read_text(encoding="utf-8")
    body = [
        "<h1>bbt-fast report</h1>",
        f'<p class="soft">{runs} run{"s" * (runs != 1)} of {escape(", ".join(tasks))} on {escape(", ".join(models))}; '
        f"made by bbt-fast {version('bbt-fast')}</p>",
        "<h2>Comparison</h2>",
        _table(groups),
        '<p class="soft">Metrics in percent: mean, and standard deviation over the seeds where there are several. '
        "Bold: the best.</p>",
        _comparison(groups),
        "<h2>Runs</h2>",
        *(_run(run, i, only=runs == 1) for i, group in enumerate(groups) for run in group.runs),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>bbt-fast report: {escape(', '.join(tasks))}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _table(groups: Sequence[Group]) -> str:
    header, *lines = rows(groups)
    best = {name: max((g.spreads[name].mean for g in groups if g.results), default=0.0) for name in TUNED}
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    body = []
    for i, (group, (label, *cells)) in enumerate(zip(groups, lines, strict=True)):
        wins = {name for name in best if len(groups) > 1 and group.results and group.spreads[name].mean == best[name]}
        filled = "".join(
            f'<td data-name="{escape(name)}"{" class=best" * (name in wins)}><span>{escape(cell)}</span></td>'
            for name, cell in zip(header[1:], cells, strict=True)
        )
        body.append(f'<tr><th scope="row">{_key(i)}{escape(label)}</th>{filled}</tr>')
    table = f'<table class="groups"><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>'
    return f'<div class="wide">{table}</div>'


def _comparison(groups: Sequence[Group]) -> str:
    """Return the charts of all runs, one colour per group."""

    def of(name: str) -> list[Series]:
        return [
            Series(f"{group.label}, seed {run.options.seed}", run.points(name), i)
            for i, group in enumerate(groups)
            for run in group.runs
        ]

    legend = [(i, group.label) for i, group in enumerate(groups)]
    return _charts(
        ("Training loss, best of each generation", line_chart("training loss", of("loss")), legend),
        ("Metric on the development set", line_chart("development metric", of("dev"), percent=True), legend),
    )


def _run(run: RunView, colour: int, *, only: bool) -> str:
    """Return the collapsible section about one run."""
    result = run.result
    outcome = f"test {100 * result.tuned.test:.1f} %" if result else f"unfinished, {run.evaluations} evaluations"
    title = f'{_key(colour)}{escape(str(run.path))} <span class="soft">seed {run.options.seed}, {outcome}</span>'
    layers = [(i, f"layer {layer}") for i, layer in enumerate(run.layers)] if len(run.layers) > 1 else []
    loss = [
        Series("train, best", run.points("loss"), 0),
        Series("train, mean", run.points("mean_loss"), 7, "faint"),
        Series("dev", run.points("dev_loss"), 1),
    ]
    metric = [Series("train", run.points("train"), 0, "faint"), Series("dev", run.points("dev"), 1)]
    charts = _charts(
        ("Loss", line_chart("loss", loss), [(one.colour, one.label) for one in loss]),
        ("Metric", line_chart("metric", metric, percent=True), [(one.colour, one.label) for one in metric]),
        ("Step size of the optimizer", line_chart("step size", _by_layer(run, "sigma")), layers),
        ("Axis ratio of the optimizer", line_chart("axis ratio", _by_layer(run, "axis_ratio")), layers),
    )
    content = f"{_facts(result)}{charts}{_confusion(result)}" if result else charts
    return f'<details{" open" * only}><summary>{title}</summary><div class="run">{content}</div></details>'


def _by_layer(run: RunView, name: str) -> list[Series]:
    if len(run.layers) < 2:
        return [Series(name, run.points(name), 0)]
    return [Series(f"layer {layer}", run.points(name, layer), i) for i, layer in enumerate(run.layers)]


def _facts(result: Result) -> str:
    zero, tuned, queries, memory = result.zero_shot, result.tuned, result.queries, result.memory
    server = "not known" if memory.server is None else f"{memory.server:,.0f} {MIB}"
    facts = {
        f"test {result.metric}": f"{100 * zero.test:.1f} % untuned, {100 * tuned.test:.1f} % tuned",
        f"dev {result.metric}": f"{100 * zero.dev:.1f} % untuned, {100 * tuned.dev:.1f} % tuned",
        f"train {result.metric}": f"{100 * tuned.train:.1f} % tuned",
        "engine": f"{result.engine} {result.precision} on {result.device}",
        "search": f"{result.evaluations:,} evaluations in {result.seconds.tune:.1f} s, {result.evals_per_s:.1f} a "
        f"second, ended by {result.stopped_by}",
        "up, a query": f"{queries.z_up_bytes:,} bytes as z, {queries.prompt_up_bytes:,} as a prompt",
        "down, a query": f"{queries.logits_down_bytes:,} bytes",
        "texts, once": f"{queries.text_up_bytes:,} bytes",
        "memory": f"user {memory.user:,.1f} {MIB}, projection {memory.projection:,.1f} {MIB}, server {server}",
    }
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items()) + "</dl>"


def _confusion(result: Result) -> str:
    """Return the confusion matrix as a table, shaded by the shares of each row."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in result.classes)
    body = []
    for name, counts in zip(result.classes, result.confusion, strict=True):
        of = max(sum(counts), 1)
        cells = "".join(f'<td style="--share:{count / of:.3f}">{count}</td>' for count in counts)
        body.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    return (
        '<div><h3>Test set: true classes in rows, predicted in columns</h3><div class="wide"><table class="confusion">'
        f"<thead><tr><th></th>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div></div>"
    )


def _charts(*charts: tuple[str, str, Sequence[tuple[int, str]]]) -> str:
    """Return the charts with points, side by side if there is room: title, SVG, legend."""
    cards = []
    for title, svg, legend in charts:
        if svg:
            keys = "".join(f"<span>{_key(colour)}{escape(label)}</span>" for colour, label in legend)
            below = f'<p class="legend">{keys}</p>' if legend else ""
            cards.append(f'<div class="card"><h3>{escape(title)}</h3>{svg}{below}</div>')
    return f'<div class="charts">{"".join(cards)}</div>'


def _key(colour: int) -> str:
    return f'<span class="key c{colour % COLOURS}"></span>'
