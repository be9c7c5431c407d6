"""Draws the plots of a run as PNG files in its folder."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ..artifacts.files import write_whole
from .curves import Points, RunView, read_run

FOLDER = "plots"
INK, FAINT, PAPER = "#1f2933", "#d9dee4", "#ffffff"
BLUE, ORANGE, GREEN, GREY = "#2f6fde", "#e8762d", "#17936b", "#8b96a3"
LAYERS = "viridis"
"""Colours of layers, from the input (dark) to the answer (bright)."""
STYLE: Any = {
    "figure.facecolor": PAPER, "axes.facecolor": PAPER, "savefig.dpi": 130, "font.size": 10.5,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": GREY, "xtick.color": INK, "ytick.color": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": FAINT,
    "grid.linewidth": 0.8, "axes.axisbelow": True, "axes.titlesize": 11.5, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "legend.frameon": False, "lines.linewidth": 1.8,
}  # fmt: skip
WIDTH, HEIGHT = 8.0, 3.2
"""Size of a panel, in inches."""
MANY_CLASSES = 20
"""From this number of classes on, a confusion matrix has no room for its counts."""


def plot_run(folder: Path) -> list[Path]:
    """Draw a run's plots into its folder and return the files.

    Raises:
        BbtFastError: if the folder holds no run, or is not writable.
    """
    run = read_run(folder)
    (folder / FOLDER).mkdir(exist_ok=True)
    paths = []
    with mpl.rc_context(STYLE):
        for name, draw in PLOTS.items():
            figure = draw(run)
            if figure is None:
                continue
            content = BytesIO()
            figure.savefig(content, format="png")
            path = folder / FOLDER / f"{name}.png"
            write_whole(path, content.getvalue())
            paths.append(path)
    return paths


def search_plot(run: RunView) -> Figure | None:
    """Loss and metric against evaluations."""
    if not run.lines:
        return None
    figure, (loss, metric) = _panels(run)
    if len(run.layers) > 1:
        _layered(figure, loss, run, "loss")
        loss.set_title("loss: each layer's best candidate of a generation, on train")
    else:
        loss.plot(*_xy(run.points("mean_loss")), color=GREY, lw=1, label="train, mean of the generation")
        loss.plot(*_xy(run.points("loss")), color=BLUE, lw=1, alpha=0.55, label="train, best of the generation")
        loss.plot(*_xy(run.points("best_loss")), color=BLUE, label="train, best so far")
        loss.set_title("loss")
    if dev := run.points("dev_loss"):
        loss.plot(*_xy(dev), color=ORANGE, label="dev, best so far on train")
    _legend(loss)
    _metric_panel(metric, run)
    return figure


def evolution_plot(run: RunView) -> Figure | None:
    """Step size and axis ratio of the optimizer."""
    if not run.lines:
        return None
    figure, panels = _panels(run)
    for axes, name, title in zip(panels, ("sigma", "axis_ratio"), ("step size", "axis ratio"), strict=True):
        if len(run.layers) > 1:
            _layered(figure, axes, run, name)
        else:
            axes.plot(*_xy(run.points(name)), color=BLUE)
        axes.set_title(f"{title} of the optimizer")
        values = [value for _, value in run.points(name)]
        if max(values) > 10 * min(values) > 0:
            axes.set_yscale("log")
    return figure


def layers_plot(run: RunView) -> Figure | None:
    """BBTv2: the best loss of each layer's turns, round by round, and the total gain of each layer."""
    if len(run.layers) < 2:
        return None
    rounds = -(-len(run.lines) // len(run.layers))
    table = np.full((len(run.layers), rounds), np.nan)
    for i, line in enumerate(run.lines):
        table[run.layers.index(line["layer"]), i // len(run.layers)] = line["loss"]
    figure = Figure(figsize=(WIDTH + 1, max(3.0, 1.6 + 0.24 * len(run.layers))), layout="constrained")
    grid = figure.add_gridspec(1, 2, width_ratios=[3, 1])
    heat, gain = figure.add_subplot(grid[0]), figure.add_subplot(grid[1])
    figure.suptitle(_title(run), x=0.01, ha="left", fontsize=10, color=GREY)
    picture = heat.imshow(table, aspect="auto", cmap="viridis_r", interpolation="nearest", origin="lower")
    heat.set(xlabel="round", ylabel="layer", title="best training loss of a turn")
    heat.grid(visible=False)
    heat.xaxis.set_major_locator(MaxNLocator(integer=True))
    heat.yaxis.set_major_locator(MaxNLocator(integer=True))
    figure.colorbar(picture, ax=heat, pad=0.02)
    gains = _gains(run)
    gain.barh(run.layers, [gains[layer] for layer in run.layers], color=BLUE, height=0.7)
    gain.set(title="gained by its turns", xlabel="fall of the best loss", ylim=(-0.5, len(run.layers) - 0.5))
    gain.yaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def confusion_plot(run: RunView) -> Figure | None:
    """The confusion matrix of the test set."""
    if run.result is None:
        return None
    counts, names = np.array(run.result.confusion), run.result.classes
    size = len(names)
    share = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    side = min(12.0, 2.6 + 0.62 * size)
    figure = Figure(figsize=(side + 1.4, side), layout="constrained")
    axes = figure.add_subplot()
    picture = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    shown = [name if len(name) <= 18 else f"{name[:17]}…" for name in names]
    axes.set_xticks(range(size), shown, rotation=0 if size < 4 else 40, ha="center" if size < 4 else "right")
    axes.set_yticks(range(size), shown)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(f"test: {run.result.tuned.test:.1%} {run.result.metric}")
    if size < MANY_CLASSES:
        for (row, column), count in np.ndenumerate(counts):
            dark = share[row, column] > 0.55
            axes.text(column, row, f"{count}", ha="center", va="center", color=PAPER if dark else INK)
    bar = figure.colorbar(picture, ax=axes, shrink=0.85, format=_percent)
    bar.outline.set_visible(False)
    bar.set_label("of the true class")
    return figure


PLOTS: dict[str, Callable[[RunView], Figure | None]] = {
    "search": search_plot,
    "evolution": evolution_plot,
    "layers": layers_plot,
    "confusion": confusion_plot,
}
"""Functions that draw the files; they return None if a run has no such data."""
_percent = FuncFormatter(lambda value, _: f"{value:.0%}")


def _panels(run: RunView) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(WIDTH, 2 * HEIGHT), layout="constrained")
    figure.suptitle(_title(run), x=0.01, ha="left", fontsize=10, color=GREY)
    panels = list(figure.subplots(2, 1, sharex=True))
    panels[-1].set_xlabel("evaluations")
    panels[-1].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    return figure, panels


def _metric_panel(axes: Any, run: RunView) -> None:
    result = run.result
    axes.plot(*_xy(run.points("train")), color=BLUE, lw=1, alpha=0.7, label="train, best of the generation")
    axes.plot(*_xy(run.points("dev")), color=ORANGE, marker="o", ms=3.5, label="dev, best so far on train")
    if result is not None:
        axes.axhline(result.tuned.test, color=GREEN, lw=1.4, label=f"test, kept prompt ({result.tuned.test:.1%})")
        axes.axhline(
            result.zero_shot.test, color=GREEN, lw=1.2, ls=(0, (4, 3)),
            label=f"test, untuned ({result.zero_shot.test:.1%})",
        )  # fmt: skip
    axes.set_title(result.metric if result else "metric")
    axes.yaxis.set_major_formatter(_percent)
    _legend(axes)


def _layered(figure: Figure, axes: Any, run: RunView, name: str) -> None:
    """Draw a curve per layer, coloured by depth."""
    colours = mpl.colormaps[LAYERS](np.linspace(0.05, 0.9, len(run.layers)))
    for layer, colour in zip(run.layers, colours, strict=True):
        axes.plot(*_xy(run.points(name, layer)), color=colour, lw=1.3)
    edges = mpl.colors.Normalize(run.layers[0] - 0.5, run.layers[-1] + 0.5)
    scale = mpl.cm.ScalarMappable(edges, mpl.colors.ListedColormap(colours))
    bar = figure.colorbar(scale, ax=axes, pad=0.01, label="layer", ticks=MaxNLocator(8, integer=True))
    bar.outline.set_visible(False)


def _gains(run: RunView) -> dict[int, float]:
    """Return the decrease of the best loss during each layer's turns."""
    gains = dict.fromkeys(run.layers, 0.0)
    bests = np.minimum.accumulate([line["loss"] for line in run.lines])
    for line, (before, after) in zip(run.lines[1:], pairwise(bests), strict=True):
        gains[line["layer"]] += float(before - after)
    return gains


def _legend(axes: Any) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best", fontsize=9)


def _title(run: RunView) -> str:
    o = run.options
    return f"task {Path(o.task_name).stem}, model {Path(str(o.model_name)).name}, {o.algorithm}, seed {o.seed}"


def _xy(points: Points) -> tuple[list[int], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
