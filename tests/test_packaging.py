"""What installs, and which versions of what."""

from __future__ import annotations

import ast
import configparser
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from bbt_fast.tuner.cli.diagnosis import TESTED

ROOT = Path(__file__).resolve().parent.parent
FLOORS = ("export", "engine", "tuner", "service", "benchmarks")
PLATFORMS = [
    {"sys_platform": system, "platform_machine": machine}
    for system, machines in {
        "linux": ("x86_64", "aarch64", "ppc64le"),
        "win32": ("AMD64", "ARM64"),
        "darwin": ("x86_64", "arm64"),
        "freebsd14": ("amd64",),
    }.items()
    for machine in machines
]


@pytest.fixture(scope="module")
def config() -> configparser.ConfigParser:
    """The options of setup.cfg."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def requirements(config: configparser.ConfigParser, *extras: str) -> list[Requirement]:
    """The requirements of the package and of some extras."""
    sections = [config["options"]["install_requires"], *(config["options.extras_require"][extra] for extra in extras)]
    lines = [line for section in sections for line in section.splitlines()]
    found = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    own = [requirement for requirement in found if requirement.name == "bbt-fast"]
    return [r for r in found if r not in own] + [r for one in own for r in requirements(config, *one.extras)]


def pins(name: str) -> dict[str, Version]:
    """The versions that a constraints file pins."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    parsed = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    for requirement in parsed:
        assert [s.operator for s in requirement.specifier] == ["=="], f"{name}: {requirement} is no pin"
    return {canonicalize_name(r.name): Version(next(iter(r.specifier)).version) for r in parsed}


def test_every_folder_of_modules_is_listed_as_a_package(config: configparser.ConfigParser) -> None:
    folders = {f.parent.relative_to(ROOT).as_posix() for floor in FLOORS for f in (ROOT / floor).rglob("*.py")}
    expected = {"bbt_fast": "."} | {"bbt_fast." + folder.replace("/", "."): folder for folder in folders}
    pairs = [line.split(" = ") for line in config["options"]["package_dir"].split("\n") if line]
    assert dict(pairs) == expected
    assert sorted(config["options"]["packages"].split()) == sorted(expected)


@pytest.mark.parametrize("platform", PLATFORMS, ids=lambda p: "-".join(p.values()))
def test_a_platform_gets_exactly_one_onnxruntime(config: configparser.ConfigParser, platform: dict[str, str]) -> None:
    wanted = [r.name for r in requirements(config) if r.marker is None or r.marker.evaluate(dict(platform))]
    assert len([name for name in wanted if name.startswith("onnxruntime")]) == 1


def test_the_constraints_pin_every_direct_dependency_inside_its_range(config: configparser.ConfigParser) -> None:
    pinned = pins("constraints.txt")
    wrong = [
        str(r)
        for r in requirements(config, "test")
        if canonicalize_name(r.name) not in pinned or not r.specifier.contains(pinned[canonicalize_name(r.name)])
    ]
    assert not wrong


def test_the_oldest_constraints_are_the_lower_bounds(config: configparser.ConfigParser) -> None:
    lowest = {}
    for requirement in requirements(config, "openvino"):
        (bound,) = requirement.specifier
        assert bound.operator == ">=", f"{requirement} has no lower bound"
        lowest[canonicalize_name(requirement.name)] = Version(bound.version)
    assert lowest["torch"] == Version("2.11")
    lowest["torch"] = Version("2.13.0")  # the oldest CPU build; 2.11 ran on a GPU
    lowest["pyparsing"] = Version("3.2.5")  # matplotlib's
    assert pins("constraints-oldest.txt") == lowest


def test_doctor_names_the_versions_that_the_bounds_and_the_constraints_do(config: configparser.ConfigParser) -> None:
    bounds = {r.name: next(iter(r.specifier)).version for r in requirements(config, "openvino")}
    for name, tested in TESTED.items():
        newest = ".".join(str(pins("constraints.txt")[canonicalize_name(name)]).split(".")[:2])
        assert re.search(rf"^{re.escape(bounds[name])}\b", tested), name
        assert re.search(rf"\b{re.escape(newest)}\b", tested), name


def test_every_library_that_is_imported_is_declared(config: configparser.ConfigParser) -> None:
    extras = config["options.extras_require"].keys() - {"test"}
    declared = {canonicalize_name(r.name) for r in requirements(config, *extras)}
    declared.add(canonicalize_name("triton"))  # PyTorch's CUDA builds bring it, and nobody else has a use for it
    distributions = packages_distributions()
    undeclared = {}
    for path in [ROOT / "__init__.py", *(file for floor in FLOORS for file in (ROOT / floor).rglob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            else:
                continue
            for name in {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"bbt_fast"}:
                known = {canonicalize_name(d) for d in distributions.get(name, [name])}
                if not known & declared:
                    undeclared[name] = f"{path.relative_to(ROOT)}:{node.lineno}"
    assert not undeclared


def test_the_wheel_holds_bbt_fast_whole_and_nothing_else(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    left_out = (".*", "build", "dist", "*.egg-info", "__pycache__", "runs", "onnx_models", "results")
    ignored = shutil.ignore_patterns(*left_out)
    shutil.copytree(ROOT, tree, ignore=ignored)
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), "."]
    run = subprocess.run(
        pip, cwd=tree, capture_output=True, text=True, check=False, env=os.environ | {"PIP_NO_INDEX": "1"}
    )
    assert run.returncode == 0, run.stderr
    (wheel,) = tmp_path.glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0].split("-")[0] for name in inside} == {"bbt_fast"}
    sources = [f for floor in FLOORS for f in (tree / floor).rglob("*") if f.is_file()]
    sources += [tree / "__init__.py", tree / "py.typed"]
    missing = {"bbt_fast/" + f.relative_to(tree).as_posix() for f in sources} - inside
    assert not missing, "not in the wheel: add a line to package_data in setup.cfg"
    assert not {name for name in inside if "test" in name or name.startswith("bbt_fast/setup")}


def test_the_gate_accepts_a_checkout_of_any_name(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "__init__.py", "tuner/__init__.py"):
        (copy := tmp_path / "bbt-fast" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy)
    subprocess.run([sys.executable, "-m", "ruff", "check", tmp_path / "bbt-fast"], check=True)
