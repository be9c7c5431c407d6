"""Every call of TensorRT's Python API fits the real bindings, which need neither a GPU nor TensorRT to be looked at.

The bindings (``tensorrt_cu13_bindings``, in the extra ``test``) import once the three libraries that they link exist;
libraries with empty entry points will do. From them come type stubs, written for the duration of the tests only: the
bindings' licence allows no copy.
"""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType, ModuleType

import pytest
from mypy import build
from mypy.config_parser import parse_config_file
from mypy.errors import CompileError
from mypy.modulefinder import BuildSource
from mypy.nodes import MemberExpr, MypyFile, RefExpr
from mypy.options import Options
from mypy.types import CallableType, Instance, get_proper_type

from bbt_fast.export.bindings import RTX

ROOT = Path(__file__).resolve().parents[2]
DRIVERS = ("export/tensorrt.py", "engine/plans.py")
"""The modules that call TensorRT, one per floor (tests/test_floors.py holds that)."""
RTX_DRIVER = "export/tensorrt_rtx.py"
"""What calls that which TensorRT for RTX alone has."""
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
CONFIG = """
[mypy]
strict = true
follow_imports = skip
ignore_missing_imports = true
mypy_path = $MYPY_CONFIG_FILE_DIR/stubs:$MYPY_CONFIG_FILE_DIR/source

[mypy-bbt_fast.*]
follow_imports = silent

[mypy-tensorrt.*,tensorrt_rtx_bindings.*]
follow_imports = normal
ignore_errors = true
"""

Attributes = set[tuple[str, str]]
"""Classes of TensorRT ("" for the module) and names that are looked up in them."""


@pytest.fixture(scope="module")
def bindings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which a process can import the real bindings, as ``tensorrt_bindings``."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    if find_spec("tensorrt_bindings") is None:
        pytest.skip("needs tensorrt_cu13_bindings, which there is for Linux on 64-bit x86 (extra `test`)")
    folder = tmp_path_factory.mktemp("libraries")
    source = ROOT / "tests" / "fake_tensorrt" / "entry_points.c"
    for name in LIBRARIES:
        library = f"lib{name}.so.{version('tensorrt_cu13_bindings').split('.')[0]}"
        command = [compiler, "-w", "-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", folder / library, source]
        subprocess.run(command, check=True)
    return os.environ | {"LD_LIBRARY_PATH": str(folder)}


@pytest.fixture(scope="module")
def stubs(bindings: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Type stubs of the real bindings, as a package ``tensorrt`` in this folder."""
    pytest.importorskip("pybind11_stubgen")
    folder = tmp_path_factory.mktemp("stubs")
    write_stubs("tensorrt_bindings.tensorrt", folder, bindings)
    return folder


@pytest.fixture(scope="module")
def rtx_stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Type stubs of TensorRT for RTX, as both packages in this folder: ``tensorrt`` and its own."""
    pytest.importorskip("pybind11_stubgen")
    if not RTX.installed:
        pytest.skip(f"needs {RTX.title}: {RTX.install}")
    folder = tmp_path_factory.mktemp("rtx-stubs")
    write_stubs("tensorrt_rtx_bindings.tensorrt_rtx", folder, dict(os.environ))
    shutil.rmtree(folder / "tensorrt_rtx_bindings")
    (folder / "tensorrt").rename(folder / "tensorrt_rtx_bindings")
    (folder / "tensorrt").mkdir()
    alias = "from tensorrt_rtx_bindings import *\n__version__: str\n"
    (folder / "tensorrt" / "__init__.pyi").write_text(alias, encoding="utf-8")
    return folder


def write_stubs(module: str, folder: Path, environment: dict[str, str]) -> None:
    """Write what a module of bindings declares as a package ``tensorrt``."""
    options = ["--ignore-all-errors", "--print-invalid-expressions-as-is", "-o", str(folder)]
    command = [sys.executable, "-m", "pybind11_stubgen", module, *options]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    text = folder.joinpath(*module.split(".")).with_suffix(".pyi").read_text(encoding="utf-8")
    (folder / "tensorrt").mkdir()
    (folder / "tensorrt" / "__init__.pyi").write_text(as_python(text.replace(f"{module}.", "")), encoding="utf-8")


def as_python(text: str) -> str:
    """Turn what the generator could not read, C++ names and enum defaults, into Python."""
    text = re.sub(r"\b(?:nvinfer1|nvonnxparser)::(?:v_\w+::)?(\w+)", r"\1", text)
    text = re.sub(r"= <[\w.]+: \d+>", "= ...", text)
    text = text.replace("IParserError", "ParserError")

    def readable(definition: re.Match[str]) -> str:
        try:
            ast.parse(f"{definition[0].strip()} ...")
        except SyntaxError:
            return f"{definition[1]}(*args: typing.Any, **kwargs: typing.Any) -> typing.Any:"
        return definition[0]

    text = re.sub(r"^( *def \w+)\(.*$", readable, text, flags=re.M)
    # A buffer by the C protocol, says its docstring; signatures do not show that before Python 3.12.
    buffer = "    def __buffer__(self, flags: int, /) -> memoryview: ...\n"
    return text.replace("class IHostMemory:\n", f"class IHostMemory:\n{buffer}") + "\n__version__: str\n"


@pytest.fixture
def check(tmp_path: Path) -> Callable[..., tuple[list[str], Attributes]]:
    """A function that type-checks the drivers, edited if asked, and returns errors and the attributes they use."""

    def run(
        stubs: Path, edits: Mapping[str, str] = MappingProxyType({}), drivers: Sequence[str] = DRIVERS
    ) -> tuple[list[str], Attributes]:
        package = tmp_path / "source" / "bbt_fast"
        for name in ("export", "engine"):
            shutil.copytree(ROOT / name, package / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "__init__.py", package)
        shutil.copytree(stubs, tmp_path / "stubs", ignore=shutil.ignore_patterns("cache", "tensorrt_bindings"))
        for driver in drivers:
            file = package / driver
            text = file.read_text(encoding="utf-8")
            for old, new in edits.items():
                text = text.replace(old, new)
            file.write_text(text, encoding="utf-8")
        (tmp_path / "mypy.ini").write_text(CONFIG, encoding="utf-8")
        options = Options()
        parse_config_file(options, lambda: None, str(tmp_path / "mypy.ini"), sys.stdout, sys.stderr)
        options.export_types = True
        options.cache_dir = str(stubs / "cache")
        modules = {driver: f"bbt_fast.{driver.removesuffix('.py').replace('/', '.')}" for driver in drivers}
        sources = [BuildSource(str(package / driver), module) for driver, module in modules.items()]
        try:
            result = build.build(sources, options)
        except CompileError as error:
            return error.messages, set()
        return result.errors, set(attributes(result))

    return run


def attributes(result: build.BuildResult) -> Iterator[tuple[str, str]]:
    """Yield each attribute of TensorRT's module, classes and objects that the checked modules look up."""
    for expression in result.types:
        if not isinstance(expression, MemberExpr):
            continue
        owner = expression.expr
        kind = get_proper_type(result.types.get(owner))
        if isinstance(owner, RefExpr) and isinstance(owner.node, MypyFile) and owner.node.fullname == "tensorrt":
            yield "", expression.name
        elif isinstance(kind, Instance) and kind.type.fullname.startswith("tensorrt."):
            yield kind.type.fullname.removeprefix("tensorrt."), expression.name
        elif isinstance(kind, CallableType) and kind.is_type_obj():
            name = kind.type_object().fullname
            if name.startswith("tensorrt."):
                yield name.removeprefix("tensorrt."), expression.name


def missing(used: Attributes, bindings: dict[str, str]) -> list[str]:
    """Return the attributes that the real bindings do not have."""
    code = (
        "import functools, json, sys, tensorrt_bindings\n"
        "for owner, name in json.load(sys.stdin):\n"
        "    kind = functools.reduce(getattr, filter(None, owner.split('.')), tensorrt_bindings)\n"
        "    if not hasattr(kind, name): print(f'{owner}.{name}')"
    )
    asked = json.dumps(sorted(used))
    run = subprocess.run(
        [sys.executable, "-c", code], check=True, env=bindings, input=asked, capture_output=True, text=True
    )
    return run.stdout.split()


def test_the_calls_fit_the_real_signatures_and_every_attribute_is_there(
    check: Callable[..., tuple[list[str], Attributes]], stubs: Path, bindings: dict[str, str]
) -> None:
    errors, used = check(stubs)
    assert errors == []
    assert {("Builder", "build_serialized_network"), ("IExecutionContext", "execute_async_v3")} < used
    assert len(used) > 60
    assert missing(used, bindings) == []


@pytest.mark.slow
def test_the_calls_fit_tensorrt_for_rtx_too(
    check: Callable[..., tuple[list[str], Attributes]], rtx_stubs: Path, tmp_path: Path
) -> None:
    drivers = (*DRIVERS, RTX_DRIVER)
    assert check(rtx_stubs, drivers=drivers)[0] == []
    shutil.rmtree(tmp_path / "source")
    shutil.rmtree(tmp_path / "stubs")
    edits = {"set_runtime_cache(cache)": "set_runtime_cache(0)", "set_shape(name, least": "set_shapes(name, least"}
    assert len(check(rtx_stubs, edits, drivers)[0]) == len(edits)


def test_a_misspelt_name_and_a_wrong_argument_are_found(
    check: Callable[..., tuple[list[str], Attributes]], stubs: Path, bindings: dict[str, str]
) -> None:
    errors, used = check(
        stubs, {"execute_async_v3": "execute_async_v4", "set_tensor_address(name": "set_tensor_address(0"}
    )
    address, name = (line.partition("error: ")[2] for line in errors)
    assert address.startswith('Argument 1 to "set_tensor_address" of "IExecutionContext" has incompatible type "int"')
    assert name.startswith('"IExecutionContext" has no attribute "execute_async_v4"')
    assert missing(used, bindings) == ["IExecutionContext.execute_async_v4"]


def test_the_fake_has_the_signatures_of_the_real_bindings(stubs: Path, fake_tensorrt: ModuleType) -> None:
    tree = ast.parse((stubs / "tensorrt" / "__init__.pyi").read_text(encoding="utf-8"))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    compared = 0
    for name, fake in vars(fake_tensorrt).items():
        if not isinstance(fake, type) or fake.__module__ != "tensorrt":
            continue
        signatures: dict[str, list[list[str]]] = {}
        for node in classes[name].body:
            if isinstance(node, ast.FunctionDef):
                signatures.setdefault(node.name, []).append([argument.arg for argument in node.args.args])
            elif isinstance(node, ast.AnnAssign | ast.ClassDef):
                signatures[node.name if isinstance(node, ast.ClassDef) else ast.unparse(node.target)] = []
        for attribute, value in vars(fake).items():
            if not attribute.startswith("_"):
                assert attribute in signatures, f"{name} has no {attribute}"
            if inspect.isfunction(value) and attribute in signatures:
                assert list(inspect.signature(value).parameters) in signatures[attribute], f"{name}.{attribute}"
                compared += 1
    assert compared > 40
