"""README and docs: every code block is run or parsed, every link leads somewhere, every table agrees with the code."""

from __future__ import annotations

import ast
import configparser
import json
import re
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest

import bbt_fast
from bbt_fast.engine.loading import ENGINES, engine_class
from bbt_fast.export import families
from bbt_fast.export.precision import PRECISIONS
from bbt_fast.tuner.cli import main as cli
from bbt_fast.tuner.cli.tune import read_config_file
from bbt_fast.tuner.input.options import Options
from bbt_fast.tuner.tasks.task import read_task

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
LANGUAGES = {"python", "bash", "text", "json", "yaml"}
BUDGET = 40
"""Evaluations of a run on a page, in place of as many as make sense."""
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\S*)[^\n]*\n(?P<body>.*?)^(?P=indent)```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A fenced code block of a page."""

    page: str
    line: int
    language: str
    body: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def read_blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(page.relative_to(ROOT).as_posix(), text.count("\n", 0, m.start()) + 1, m["language"], m["body"])
        for m in FENCE.finditer(text)
    ]


BLOCKS = [block for page in PAGES for block in read_blocks(page)]
PYTHON = [block for block in BLOCKS if block.language == "python"]
COMMANDS = [
    pytest.param(command, id=f"{block}: {command}")
    for block in BLOCKS
    if block.language == "bash"
    for line in block.body.replace("\\\n", " ").splitlines()
    for command in re.split(r"\s&&\s|\s\|\s", line.split(" # ")[0].strip())
    if command and not command.startswith("#")
]


def without_code(page: Path) -> str:
    """The text of a page without its code blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    titles = re.findall(r"^#+ +(.*)$", without_code(page), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_block_names_its_language() -> None:
    assert len(BLOCKS) > 5
    assert not [str(block) for block in BLOCKS if block.language not in LANGUAGES]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(page)):
        if link.startswith(("https://", "http://")):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def test_every_page_that_the_code_mentions_exists() -> None:
    parts = ("export", "engine", "tuner", "service", "scripts", "benchmarks")
    sources = [file for part in parts for file in (ROOT / part).rglob("*.py")]
    mentioned = {m for file in sources for m in re.findall(r"\bdocs/[a-z-]+\.md", file.read_text(encoding="utf-8"))}
    assert not sorted(page for page in mentioned if not (ROOT / page).exists())


def run_python(block: Block, folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Run a block in a folder, with a small budget."""
    patch.chdir(folder)
    patch.setattr(families, "FAMILIES", families.FAMILIES)  # a page adds a row of its own
    body = re.sub(r"(\bbudget\b\"?[=:] ?)\d+", rf"\g<1>{BUDGET}", block.body)
    exec(compile(body, str(block), "exec"), {"__name__": "docs"})


@pytest.mark.parametrize("block", [b for b in PYTHON if "tune(" not in b.body], ids=str)
def test_python_block_runs(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_python(block, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("block", [b for b in PYTHON if "tune(" in b.body], ids=str)
def test_python_block_that_tunes_runs(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tune, few = bbt_fast.tune, {"max_test_examples": 40, "plots": False}
    monkeypatch.setattr("bbt_fast.tune", lambda *given, **options: tune(*given, **few | options))
    run_python(block, tmp_path, monkeypatch)


def test_the_sweep_of_the_docs_continues_where_it_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = [block for block in PYTHON if "optuna" in block.body]
    asked: list[dict[str, Any]] = []

    def tune(output_dir: Path, **options: Any) -> Any:
        asked.append({"folder": output_dir.name} | options)
        if len(asked) == 2:
            raise KeyboardInterrupt
        dev = -abs(options["sigma"] - 1)
        output_dir.mkdir(parents=True)
        (output_dir / "result.json").write_text(json.dumps({"tuned": {"dev": dev}}))
        return SimpleNamespace(tuned=SimpleNamespace(dev=dev))

    monkeypatch.setattr("bbt_fast.tune", tune)
    with pytest.raises(KeyboardInterrupt):
        run_python(block, tmp_path, monkeypatch)
    run_python(block, tmp_path, monkeypatch)
    assert [one["folder"] for one in asked] == ["0", "1", "1", "2"]
    assert asked[1] == asked[2]
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["0", "1", "2"]


@pytest.mark.parametrize("block", [b for b in PYTHON if "tune(" in b.body], ids=str)
def test_python_block_that_tunes_gives_options_that_exist(block: Block) -> None:
    calls = [n for n in ast.walk(ast.parse(block.body)) if isinstance(n, ast.Call)]
    tunes = [c for c in calls if isinstance(c.func, ast.Attribute) and c.func.attr == "tune"]
    assert tunes
    for call in tunes:
        names = {k.arg: k.value for k in call.keywords if k.arg}
        Options.of(**{k: "a variable" if isinstance(v, ast.Name) else ast.literal_eval(v) for k, v in names.items()})


def check_bbt_fast(words: list[str]) -> None:
    """The real parser takes the flags, and the options their values."""
    words = words if words and words[0] in cli.COMMANDS else ["tune", *words]
    given = vars(cli.make_parser(words[0]).parse_args(words))
    Options.of(**{field.name: given[field.name] for field in fields(Options) if field.name in given})


def check_pip(words: list[str]) -> None:
    """Constraint files and extras exist."""
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    assert words.pop(0) == "install"
    while words:
        word = words.pop(0)
        if word == "-c":
            assert (ROOT / words.pop(0)).is_file()
        elif word != "-e":
            name, extras = re.fullmatch(r"(\.|bbt-fast)(?:\[([\w,-]+)\])?", word).groups()  # type: ignore[union-attr]
            assert set(extras.split(",") if extras else ()) <= set(config["options.extras_require"]), name


def check_make(words: list[str]) -> None:
    """The target exists."""
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert set(words) <= set(targets)


def check_python(words: list[str]) -> None:
    """The script exists, and takes the flags; or it is the standard library's venv."""
    if words[0] != "-m":
        text = (ROOT / words[0]).read_text(encoding="utf-8")
        flags = [word.removeprefix("--").replace("-", "_") for word in words[1:] if word.startswith("--")]
        assert not [flag for flag in flags if flag not in text]
    else:
        assert words[1] == "venv"


CHECKS: dict[str, Callable[[list[str]], None]] = {
    "bbt-fast": check_bbt_fast,
    "pip": check_pip,
    "make": check_make,
    "python": check_python,
    "python3": check_python,
    ".": lambda words: None,  # activates an environment
}


@pytest.mark.parametrize("command", COMMANDS)
def test_shell_command_is_one_that_exists(command: str) -> None:
    first, *words = shlex.split(command)
    CHECKS[first](words)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "yaml"], ids=str)
def test_yaml_block_is_a_task_or_a_file_of_options(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "block.yaml"
    path.write_text(block.body, encoding="utf-8")
    if "templates:" in block.body:
        assert read_task(path).labels
    else:
        assert Options.of(**read_config_file(path))


def test_every_flag_that_the_pages_for_users_name_exists(capsys: pytest.CaptureFixture[str]) -> None:
    for command in cli.COMMANDS:
        with pytest.raises(SystemExit, match="0"):
            cli.make_parser(command).parse_args([command, "--help"])
    known = set(re.findall(r"--[\w-]+", capsys.readouterr().out)) | {"--help"}
    pages = [ROOT / "README.md", ROOT / "docs" / "engines.md", ROOT / "docs" / "original.md"]
    named = {flag for page in pages for flag in re.findall(r"`[^`\n]*?(--[\w-]+)", without_code(page))}
    assert len(named) > 20
    assert not named - known


def test_the_table_of_engines_is_the_code_s() -> None:
    table = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (cpu|cuda) \| ([\w, -]+) \|", table, re.M)
    written = {(engine, device, precision) for engine, device, listed in rows for precision in listed.split(", ")}
    installed = [name for name, row in ENGINES.items() if row.installed]
    actual = {
        (name, device, precision)
        for name in installed
        for device, precisions in engine_class(name).precisions.items()
        for precision in precisions
    }
    assert {row for row in written if row[0] in installed} == actual
    assert {engine for engine, _, _ in written} == set(ENGINES)


def test_the_thresholds_on_the_page_of_engines_are_the_code_s() -> None:
    text = " ".join((ROOT / "docs" / "engines.md").read_text(encoding="utf-8").split())
    for row in PRECISIONS.values():
        words = rf"in {row.name} (a correlation of )?{row.min_spearman:g} and (an error of )?{row.max_loss_error:g}\b"
        assert re.search(words, text), row


def test_the_table_of_models_is_the_code_s() -> None:
    places = {"masked": "the mask", "seq2seq": "decoder", "decoder": "the last token"}
    page = (ROOT / "docs" / "engines.md").read_text(encoding="utf-8")
    table = page.partition("## Models\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([^`|]+) \| ([^|]+) \| (.+) \|$", table, re.M)
    rows = [row for row in rows if not row[0].startswith(("family", "-"))]
    assert [(name, tuple(re.findall(r"`(.+?)`", types))) for name, types, _ in rows] == [
        (family.name, family.model_types) for family in families.FAMILIES
    ]
    assert all(places[family.kind] in row[2] for family, row in zip(families.FAMILIES, rows, strict=True))


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "json"], ids=str)
def test_json_block_is_a_row_of_jsonl_per_line(block: Block) -> None:
    assert all(isinstance(json.loads(line), dict) for line in block.body.splitlines())


def test_every_picture_is_used_and_small() -> None:
    pictures = set((ROOT / "docs" / "images").iterdir())
    linked = [
        (page.parent / link).resolve()
        for page in PAGES
        for link in re.findall(r"!\[[^\]]+\]\(([^)\s]+)\)", without_code(page))
        if not link.startswith("https://")
    ]
    assert pictures
    assert pictures <= set(linked)
    assert all(picture.stat().st_size < 200_000 for picture in pictures)


def test_the_picture_of_a_run_shows_its_command_and_asks_for_nothing() -> None:
    text = (ROOT / "docs" / "images" / "demo.svg").read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    words = " ".join("".join(element.itertext()) for element in root.iter())
    for expected in ("bbt-fast --engine ort", "zero-shot", "evaluations in", "1000/1000"):
        assert expected in words
    assert set(re.findall(r"https?://[^\s\"']+", text)) == {"http://www.w3.org/2000/svg"}


def test_ci_runs_the_readme_s_own_test_command() -> None:
    (extract,) = re.findall(r"^steps=\$\((.*)\)$", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.M)
    found = subprocess.run(["bash", "-c", extract], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert found.strip() == "pip install -c constraints.txt -e '.[test]' && make check"
