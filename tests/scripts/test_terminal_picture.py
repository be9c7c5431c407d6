"""The picture of a terminal: carriage returns, colours and progress bars end where they would on a screen."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "terminal_picture.py"
PROGRAM = """
import sys, time
sys.stderr.write("\\x1b[32mgreen\\x1b[0m and plain\\n")
for done in range(3):
    sys.stderr.write(f"\\rbar {done}/2 <&>")
    sys.stderr.flush()
print()
print("gone\\rkept")
print("first\\nsecond\\x1b[A\\r\\x1b[Kagain\\n")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_what_stands_on_the_screen_at_the_end_is_drawn(tmp_path: Path) -> None:
    output = tmp_path / "p.svg"
    command = [sys.executable, str(SCRIPT), str(output), sys.executable, "-c", PROGRAM]
    subprocess.run(command, check=True, timeout=60)
    root = ElementTree.parse(output).getroot()
    lines: dict[float, str] = {}
    for text in root.iter("{http://www.w3.org/2000/svg}text"):
        lines[float(text.attrib["y"])] = lines.get(float(text.attrib["y"]), "") + "".join(text.itertext())
    shown = [lines[y] for y in sorted(lines)]
    assert shown[-5:] == ["green and plain", "bar 2/2 <&>", "kept", "again", "second"]
    assert re.search(r'fill="#4cc79d"[^>]*>green<', output.read_text())


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_command_that_fails_is_not_drawn(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), str(tmp_path / "p.svg"), sys.executable, "-c", "raise SystemExit('no')"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "failed:\nno" in done.stderr
    assert not (tmp_path / "p.svg").exists()
