"""Line charts as inline SVG, without script or colours: the style sheet makes them light or dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from .curves import Points

WIDTH, HEIGHT = 640, 320
LEFT, RIGHT, TOP, BOTTOM = 74, 20, 14, 36
MOST_STEPS = 5
"""Largest number of steps between an axis's ends."""
MOST_POINTS = 400
"""Largest number of points in a curve, more than its width can show."""
COLOURS = 8
"""Number of series colours in the style sheet; further series reuse them."""


@dataclass(frozen=True)
class Series:
    """One curve."""

    label: str
    points: Points
    colour: int
    """Index of a colour in the style sheet."""
    style: str = ""
    """A further CSS class, such as faint."""


def line_chart(name: str, series: Sequence[Series], *, percent: bool = False) -> str:
    """Return a chart against evaluations, or "" if there are no points.

    Args:
        name: the label for screen readers.
        series: the curves; each shows its label as a tooltip.
        percent: whether values are shares.
    """
    series = [one for one in series if one.points]
    if not series:
        return ""
    across = nice_ticks(0, max(x for one in series for x, _ in one.points))
    values = [y for one in series for _, y in one.points]
    up = nice_ticks(min(values), max(values))
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + wide * (x - across[0]) / (across[-1] - across[0]),
            TOP + high * (1 - (y - up[0]) / (up[-1] - up[0])),
        )

    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(name)}">']
    for tick in up:
        _, y = place(0, tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y:.1f}" dy="0.35em" text-anchor="end">{_value(tick, percent)}</text>')
    for tick in across:
        x, y = place(tick, up[0])
        anchor = "end" if tick == across[-1] else "middle"
        parts.append(f'<text x="{x:.1f}" y="{y + 20:.1f}" text-anchor="{anchor}">{tick:,.0f}</text>')
    for one in series:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in _thinned(one.points)))
        parts.append(
            f'<polyline class="line c{one.colour % COLOURS} {one.style}" points="{path}">'
            f"<title>{escape(one.label)}</title></polyline>"
        )
    return "".join([*parts, "</svg>"])


def nice_ticks(low: float, high: float) -> list[float]:
    """Return at least two ticks that enclose a range; their step is 1, 2 or 5 times a power of ten."""
    if not high > low:
        low, high = low - (abs(low) or 1) * 0.05, high + (abs(high) or 1) * 0.05
    raw = (high - low) / MOST_STEPS
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * i for i in range(first, max(last, first + 1) + 1)]


def _thinned(points: Points) -> Points:
    """Return at most ``MOST_POINTS`` points, including the last."""
    every = -(-len(points) // MOST_POINTS)
    return points[::-every][::-1]


def _value(value: float, percent: bool) -> str:
    return f"{100 * value:.6g}%" if percent else f"{value:.6g}"
