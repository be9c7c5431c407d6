"""Run a command in a pseudo-terminal, and draw the final screen as an SVG.

    python scripts/terminal_picture.py docs/images/demo.svg bbt-fast --engine ort

draws the README's picture. Build the graphs first (`bbt-fast export --engine ort`): the picture then shows a run with a
warm cache. The command runs in an empty folder. The script needs a pseudo-terminal, so it runs on Linux and macOS only.
"""

from __future__ import annotations

import argparse
import os
import pty
import re
import shlex
import subprocess
import sys
import tempfile
import termios
from contextlib import suppress
from dataclasses import dataclass, field
from html import escape
from itertools import groupby
from pathlib import Path

COLUMNS, ROWS = 104, 60
CELL, LINE, SIZE, MARGIN, BAR = 8.4, 19, 14, 18, 36
"""A character's width and a line's height, the font's size, the margin and the title bar, in pixels."""
PAPER, FRAME, INK, FAINT, PROMPT = "#14181d", "#343d47", "#e4e8ec", "#9aa7b4", "#4cc79d"
COLOURS = {30: "#6b7785", 31: "#ff8a80", 32: "#4cc79d", 33: "#dcb63d", 34: "#6ba1ff", 35: "#d488ef", 36: "#55c7dd"}
LIGHTS = ("#ff5f57", "#febc2e", "#28c840")
CONTROL = re.compile(r"\x1b\[([\d;]*)([A-Za-z])|\x1b[=>]|\x1b\][^\x07]*\x07|([\r\n])|([^\x1b\r\n])")


@dataclass
class Screen:
    """The features of a terminal that progress bars and coloured logs need."""

    lines: list[list[tuple[str, str]]] = field(default_factory=lambda: [[]])
    """Cells; each has a character and its colour."""
    row: int = 0
    column: int = 0
    colour: str = INK

    def feed(self, text: str) -> None:
        """Show a program's output."""
        for match in CONTROL.finditer(text):
            arguments, name, motion, character = match.groups()
            if character:
                self._put(character)
            elif motion == "\r":
                self.column = 0
            elif motion == "\n":
                self._down()
            elif name:
                self._control(name, [int(part) for part in arguments.split(";") if part])

    def _put(self, character: str) -> None:
        line = self.lines[self.row]
        line += [(" ", INK)] * (self.column + 1 - len(line))
        line[self.column] = (character, self.colour)
        self.column += 1

    def _down(self) -> None:
        self.row += 1
        if self.row == len(self.lines):
            self.lines.append([])

    def _control(self, name: str, numbers: list[int]) -> None:
        if name == "A":
            self.row = max(0, self.row - (numbers or [1])[0])
        elif name == "K":
            del self.lines[self.row][self.column :]
        elif name == "m":
            for number in numbers or [0]:
                self.colour = INK if number in (0, 39) else COLOURS.get(number % 60, self.colour)

    @property
    def shown(self) -> list[list[tuple[str, str]]]:
        """The lines without trailing blanks, and without trailing empty lines."""
        lines = [line[: len("".join(character for character, _ in line).rstrip())] for line in self.lines]
        while lines and not lines[-1]:
            lines.pop()
        return lines


def run_in_terminal(command: list[str]) -> Screen:
    """Run a command in an empty folder and return its final screen."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (ROWS, COLUMNS))
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": str(COLUMNS)}
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdin=slave, stdout=slave, stderr=slave)
        os.close(slave)
        written = b""
        with open(master, "rb", buffering=0) as terminal, suppress(OSError):  # Linux raises it at the end
            while part := terminal.read(65536):
                written += part
        text = written.decode(errors="replace")
        if process.wait():
            sys.exit(f"{shlex.join(command)} failed:\n{text}")
    screen = Screen()
    screen.feed(text.replace("\r\n", "\n\r"))
    return screen


def picture(command: str, lines: list[list[tuple[str, str]]]) -> str:
    """Return the SVG of a terminal window with the command and its final lines."""
    lines = [[("$", PROMPT), (" ", INK), *((character, INK) for character in command)], [], *lines]
    width, height = round(2 * MARGIN + COLUMNS * CELL), BAR + 2 * MARGIN + LINE * len(lines)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f"font-family=\"ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace\" "
        f'font-size="{SIZE}" role="img"><title>{escape(command)}</title>',
        f'<rect x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="10" fill="{PAPER}" stroke="{FRAME}"/>',
        *(f'<circle cx="{22 + 20 * i}" cy="{BAR / 2 + 2}" r="6" fill="{fill}"/>' for i, fill in enumerate(LIGHTS)),
    ]
    for row, line in enumerate(lines):
        column, y = 0, BAR + MARGIN + LINE * row + SIZE
        for colour, cells in groupby(line, key=lambda cell: cell[1]):
            text = "".join(character for character, _ in cells)
            if text.strip():
                x, length = MARGIN + CELL * column, CELL * len(text)
                parts.append(
                    f'<text x="{x:.1f}" y="{y}" fill="{colour}" textLength="{length:.1f}" '
                    f'lengthAdjust="spacingAndGlyphs" xml:space="preserve">{escape(text)}</text>'
                )
            column += len(text)
    return "\n".join([*parts, "</svg>\n"])


def main() -> None:
    """Run and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    screen = run_in_terminal(args.command)
    args.output.write_text(picture(shlex.join(args.command), screen.shown), encoding="utf-8")


if __name__ == "__main__":
    main()
