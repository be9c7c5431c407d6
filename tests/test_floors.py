"""The architecture: floors and rooms, imports only downward, an optional library behind the one file that drives it."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from xml.etree import ElementTree

import pytest

from scripts.architecture_picture import FLOORS, MODULES, ROOMS, ROOT, SCRIPTS, imported, inner_imports, picture

EXTRAS = (
    "tensorrt", "tensorrt_rtx_bindings", "openvino", "tensorboard", "wandb", "tritonclient", "ray", "peft", "sklearn",
)  # fmt: skip
HEAVY = ("onnxruntime", "datasets", "matplotlib", *EXTRAS)


def floor(name: str) -> int:
    """0 for export, 1 for engine, 2 for tuner, 3 for the root with the public API, more for what stands on it."""
    return [*FLOORS, "", *SCRIPTS].index(name.split(".")[0])


def test_the_reader_of_imports_resolves_relative_names() -> None:
    assert ("export.errors", 10) in [(name, 10) for name, _ in inner_imports("export.examples")]
    assert "torch" in {name.split(".")[0] for name, _ in imported("export.examples")}


def room(name: str) -> int:
    """The place of a module's room in ``ROOMS``; -1 for the tuner's package itself and outside the tuner."""
    parts = name.split(".")
    return ROOMS.index(parts[1]) if parts[0] == "tuner" and len(parts) > 1 else -1


def upward(imports: Mapping[str, Iterable[tuple[str, int]]]) -> list[str]:
    """The imports that point to a higher floor, or inside the tuner to a higher room."""
    return [
        f"{MODULES[name].relative_to(ROOT)}:{line} imports bbt_fast.{target}"
        for name, found in imports.items()
        for target, line in found
        if floor(target) > floor(name) or (floor(target) == floor(name) and room(target) > room(name))
    ]


def test_imports_point_only_downward() -> None:
    assert not upward({name: inner_imports(name) for name in MODULES})


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("engine.base", "tuner.search.bbt"),
        ("tuner.search.bbt", "tuner.run.driver"),
        ("tuner.run.driver", "tuner.report.curves"),
        ("tuner.report.curves", "tuner.tune"),
    ],
)
def test_an_import_that_points_upward_is_found(name: str, target: str) -> None:
    (found,) = upward({name: [(target, 7)], target: [(name, 8)]})
    assert found.endswith(f"{name.rpartition('.')[2]}.py:7 imports bbt_fast.{target}")


def test_the_table_of_rooms_is_the_tuner_s_and_the_docs() -> None:
    assert {name.split(".")[1] for name in MODULES if name.startswith("tuner.")} == set(ROOMS)
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `tuner/(\w+)(?:/|\.py)` \|", page, re.M) == list(reversed(ROOMS))


def test_imports_inside_the_package_are_relative() -> None:
    absolute = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for name, path in MODULES.items()
        if name.split(".")[0] not in SCRIPTS
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Import) and any(a.name.split(".")[0] == "bbt_fast" for a in node.names))
        or (isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] == "bbt_fast")
    ]
    assert not absolute


def test_no_two_modules_import_each_other() -> None:
    graph = {name: {target for target, _ in inner_imports(name)} - {name} for name in MODULES}
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            pytest.fail("import cycle: " + " -> ".join([*path[path.index(name) :], name]))
        if name not in done:
            for target in sorted(graph[name]):
                visit(target, [*path, name])
            done.add(name)

    for name in graph:
        visit(name, [])


def test_a_heavy_library_has_one_driver_per_floor() -> None:
    drivers: dict[tuple[str, str], set[str]] = defaultdict(set)
    for name in MODULES:
        for target, _ in imported(name):
            library = target.split(".")[0]
            if library in HEAVY and name.split(".")[0] not in SCRIPTS:
                drivers[library, name.split(".")[0]].add(name)
    scattered = {
        f"{library} on floor {on}": sorted(names) for (library, on), names in drivers.items() if len(names) > 1
    }
    assert not scattered


FOR_CUDA = ("engine.gelu_kernel", "export.short_attention_kernel")
"""What needs Triton, which comes with PyTorch's CUDA builds."""
PROBE = '''
import importlib, json, sys

heavy, extras, names = json.loads(sys.argv[1])

class Without:
    """A finder of modules that finds no extra: the environment of somebody who did not install them."""

    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in extras else self.finder.find_spec(name, path, target)

def forget(found):
    for name in [name for name in sys.modules if name.split(".")[0] in found]:
        del sys.modules[name]

for name in ("bbt_fast", "bbt_fast.export", "bbt_fast.engine", "bbt_fast.engine.pool", "bbt_fast.tuner"):
    importlib.import_module(name)
loaded = sorted({name.split(".")[0] for name in sys.modules} & set(heavy))
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
forget({"bbt_fast", *extras})
failed = {}
for name in names:
    try:
        importlib.import_module(name)
    except ImportError as error:
        failed[name] = str(error)
print(json.dumps({"loaded": loaded, "failed": failed}))
'''


@pytest.fixture(scope="module")
def probe() -> dict[str, object]:
    """What a fresh process loads with the packages; and which modules it cannot import once it has no extras."""
    names = [f"bbt_fast.{name}".rstrip(".") for name in MODULES if name not in FOR_CUDA]
    run = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps([HEAVY, EXTRAS, names])], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    answer: dict[str, object] = json.loads(run.stdout.splitlines()[-1])
    return answer


def test_every_module_imports_without_the_extras(probe: dict[str, object]) -> None:
    assert probe["failed"] == {}


def test_importing_the_packages_loads_no_heavy_library(probe: dict[str, object]) -> None:
    assert probe["loaded"] == []


def test_the_picture_shows_every_floor_and_room() -> None:
    text = (ROOT / "docs" / "images" / "architecture.svg").read_text(encoding="utf-8")
    for drawn in (text, picture()):
        words = " ".join("".join(element.itertext()) for element in ElementTree.fromstring(drawn).iter())
        assert all(name in words for name in (*FLOORS, *SCRIPTS, *ROOMS))
