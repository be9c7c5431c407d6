"""Draw the floors, the tuner's rooms and the imports between them, as they are in the code.

    python scripts/architecture_picture.py

replaces docs/images/architecture.svg. The number on an arrow counts import statements. Tests read the imports with this
file's functions.
"""

from __future__ import annotations

import argparse
import ast
from collections import Counter
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FLOORS = ("export", "engine", "tuner")  # lowest first
ROOMS = (
    "demo", "input", "search", "tasks", "data", "artifacts", "run", "use", "report", "command", "side_by_side", "tune",
    "cli",
)  # fmt: skip
"""The tuner's, lowest first; ``command``, ``side_by_side`` and ``tune`` are single modules. A room imports only from
those before it."""
SCRIPTS = ("service", "benchmarks")
"""They use the floors. Their files also run as scripts, so they import by absolute names, and share libraries."""
QUESTIONS = {
    "export": "How does a Hugging Face model become a chain of graphs?",
    "engine": "What does the model say to these prompts?",
    "tuner": "Which prompt is best?",
    "service": "The model behind an API",
    "benchmarks": "How fast, how faithful, how accurate?",
}
WIDTH, FLOOR, GAP, MARGIN = 860, 112, 46, 20
INK, FAINT, PAPER, LINE = "#1d2733", "#5b6875", "#ffffff", "#8593a1"
COLOURS = {"export": "#e4eef9", "engine": "#e3f4ea", "tuner": "#fdf3dc", "service": "#f3e9f8", "benchmarks": "#f3e9f8"}

Modules = dict[str, Path]


def find_modules() -> Modules:
    """Return every installed module by its name below bbt_fast: "" for the root, "export.errors", "tuner"."""
    files = [ROOT / "__init__.py", *(file for floor in (*FLOORS, *SCRIPTS) for file in (ROOT / floor).rglob("*.py"))]
    parts = {file: file.relative_to(ROOT).with_suffix("").parts for file in files}
    return {".".join(p[:-1] if p[-1] == "__init__" else p): file for file, p in parts.items()}


MODULES = find_modules()


def imported(name: str) -> list[tuple[str, int]]:
    """Return the imports of a module as (absolute dotted name, line)."""
    path = MODULES[name]
    package = ["bbt_fast", *filter(None, name.split("."))]
    if path.name != "__init__.py":
        package.pop()
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            found += [(f"{module}.{alias.name}", node.lineno) for alias in node.names]
    return found


def inner_imports(name: str) -> list[tuple[str, int]]:
    """Return the modules of this package that a module imports, as (name in ``MODULES``, line)."""
    found = []
    for target, line in imported(name):
        inside = target.removeprefix("bbt_fast").removeprefix(".")
        if target.split(".")[0] != "bbt_fast":
            continue
        while inside not in MODULES:  # a name inside a module, not a module
            inside = inside.rpartition(".")[0]
        found.append((inside, line))
    return found


def picture() -> str:
    """Return the picture as SVG."""
    tops = {name: MARGIN + row * (FLOOR + GAP) for row, name in enumerate(("service", "tuner", "engine", "export"))}
    half = (WIDTH - 3 * MARGIN) / 2
    places = {name: (MARGIN, tops[name], WIDTH - 2.0 * MARGIN) for name in FLOORS} | {
        "service": (MARGIN, tops["service"], half),
        "benchmarks": (2 * MARGIN + half, tops["service"], half),
    }
    arrows: list[str] = []
    for upper, (x, top, width) in places.items():
        below = [(name, count) for name, count in _imports_of(upper).items() if places[name][1] > top]
        for number, (lower, count) in enumerate(sorted(below, key=lambda one: -places[one[0]][1]), 1):
            at = x + width * (number / (len(below) + 1) - 0.02)
            arrows.append(_arrow(at, top + FLOOR, places[lower][1], f"{count} to {lower}"))
    parts = [*arrows, *(_box(name, *places[name]) for name in places)]
    height = tops["export"] + FLOOR + MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif">'
        f'<rect width="{WIDTH}" height="{height}" fill="{PAPER}"/>{"".join(parts)}</svg>\n'
    )


def _imports_of(box: str) -> Counter[str]:
    """Count the import statements of a box by the imported box."""
    found: Counter[str] = Counter()
    for name in MODULES:
        if name.split(".")[0] == box:
            found.update(target for target, _ in {(to.split(".")[0], line) for to, line in inner_imports(name)})
    return Counter({name: count for name, count in found.items() if name in QUESTIONS and name != box})


def _box(name: str, x: float, y: float, width: float) -> str:
    """Draw a box with its question, its size and, for the tuner, its rooms."""
    files = [path for module, path in MODULES.items() if module.split(".")[0] == name]
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files)
    size = f"{len(files)} modules, {lines:,} lines"
    drawn = [
        f'<rect x="{x}" y="{y}" width="{width}" height="{FLOOR}" rx="8" fill="{COLOURS[name]}" stroke="{LINE}"/>',
        _text(x + 14, y + 26, f"{name}/", 18, INK, "bold"),
        _text(x + 14, y + 48, QUESTIONS[name], 14, INK),
        _text(x + 14, y + 68, size, 12, FAINT),
    ]
    if name == "tuner":
        place = x + 14.0
        for room in ROOMS:
            wide = 16 + 6.4 * len(room)
            drawn.append(
                f'<rect x="{place}" y="{y + 78}" width="{wide}" height="24" rx="5" fill="{PAPER}" stroke="{LINE}"/>'
            )
            drawn.append(_text(place + 8, y + 94, room, 11.5, INK))
            place += wide + 4
    return "".join(drawn)


def _arrow(x: float, top: float, bottom: float, label: str) -> str:
    tip = f"{x - 5},{bottom - 9} {x + 5},{bottom - 9} {x},{bottom}"
    line = f'<line x1="{x}" y1="{top}" x2="{x}" y2="{bottom - 8}" stroke="{LINE}" stroke-width="2"/>'
    return f'{line}<polygon points="{tip}" fill="{LINE}"/>{_text(x + 8, top + 27, label, 12, FAINT)}'


def _text(x: float, y: float, text: str, size: float, colour: str, weight: str = "normal") -> str:
    return f'<text x="{x}" y="{y}" font-size="{size}" fill="{colour}" font-weight="{weight}">{escape(text)}</text>'


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", type=Path, default=ROOT / "docs" / "images" / "architecture.svg")
    parser.parse_args().path.write_text(picture(), encoding="utf-8")
