"""Plans on the fake TensorRT: what is built when, what is kept, and the errors when TensorRT fails."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import onnx
import pytest

from bbt_fast.export import tensorrt
from bbt_fast.export.bindings import Gpu
from bbt_fast.export.cache import MANIFEST, read_json
from bbt_fast.export.errors import DeviceError
from bbt_fast.export.tensorrt import plan_from_onnx

GPU = Gpu("Fake GPU", (8, 6))
GRAPH = """<ir_version: 11, opset_import: ["": 23]>
stage (float16[hidden_population,examples,sequence,4] hidden, float16[prompt_population,2,4] prompt)
=> (float16[population,examples,sequence,4] next_hidden) {
    axis = Constant <value_ints = [1]> ()
    over_examples = Unsqueeze (prompt, axis)
    next_hidden = Add (hidden, over_examples)
}"""
PROFILE = {"hidden": ((1, 3, 2, 4),) * 3, "prompt": ((5, 2, 4),) * 3}


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test an empty cache."""
    monkeypatch.setenv("BBT_FAST_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """A graph of two inputs, whose populations may differ."""
    path = tmp_path / "stage_00.onnx"
    onnx.save(onnx.parser.parse_model(GRAPH), path)
    return path


def test_a_plan_is_built_once_and_its_manifest_says_for_what(fake: ModuleType, graph: Path) -> None:
    plan = plan_from_onnx(graph, PROFILE, GPU)
    assert plan_from_onnx(graph, PROFILE, GPU) == plan
    assert len(fake.builds) == 1
    key = read_json(plan.with_name(MANIFEST))["key"]
    assert key["gpu"] == "Fake GPU"
    assert key["compute capability"] == [8, 6]
    assert key["profile"]["hidden"] == [[1, 3, 2, 4]] * 3
    assert key["versions"]["tensorrt"] == fake.__version__


CHANGES: dict[str, Callable[[pytest.MonkeyPatch, ModuleType, Path], tuple[object, Gpu]]] = {
    "another version of TensorRT": lambda patch, fake, graph: (patch.setattr(fake, "__version__", "11.5.0.1"), GPU),
    "another GPU": lambda patch, fake, graph: (None, replace(GPU, name="Other GPU")),
    "another compute capability": lambda patch, fake, graph: (None, replace(GPU, capability=(9, 0))),
    "another graph": lambda patch, fake, graph: (graph.write_bytes(graph.read_bytes() + b"\x12\x01x"), GPU),
    "other external weights": lambda patch, fake, graph: (graph.with_name("stage_00.onnx.data").write_bytes(b"x"), GPU),
    "another flag": lambda patch, fake, graph: (patch.setattr(tensorrt, "WORKSPACE_BYTES", 1 << 20), GPU),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_plan_for_something_else_is_another_plan(
    change: str, fake: ModuleType, graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = plan_from_onnx(graph, PROFILE, GPU)
    _, gpu = CHANGES[change](monkeypatch, fake, graph)
    assert plan_from_onnx(graph, PROFILE, gpu) != first
    assert len(fake.builds) == 2


def test_other_shapes_are_another_plan(fake: ModuleType, graph: Path) -> None:
    wider = PROFILE | {"prompt": ((1, 2, 4), (5, 2, 4), (5, 2, 4))}
    assert plan_from_onnx(graph, PROFILE, GPU) != plan_from_onnx(graph, wider, GPU)
    assert [build["shapes"]["prompt"][0] for build in fake.builds] == [(5, 2, 4), (1, 2, 4)]


def test_a_damaged_plan_is_built_again(fake: ModuleType, graph: Path, caplog: pytest.LogCaptureFixture) -> None:
    plan = plan_from_onnx(graph, PROFILE, GPU)
    plan.write_bytes(plan.read_bytes()[:-1])
    assert plan_from_onnx(graph, PROFILE, GPU) == plan
    assert len(fake.builds) == 2
    assert "plan.engine has changed" in caplog.text


def test_later_builds_know_the_timings_of_earlier_ones(fake: ModuleType, graph: Path) -> None:
    for candidates in (2, 3, 4):
        plan_from_onnx(graph, PROFILE | {"prompt": ((candidates, 2, 4),) * 3}, GPU)
    assert [build["known"] for build in fake.builds] == [0, 1, 2]
    plan_from_onnx(graph, PROFILE, replace(GPU, name="Other GPU"))
    assert fake.builds[-1]["known"] == 0


@pytest.mark.parametrize("content", [b"not what it was", b'{"version": "10.0", "layers": []}'])
def test_timings_that_tensorrt_refuses_are_measured_again(
    content: bytes, fake: ModuleType, graph: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan_from_onnx(graph, PROFILE, GPU)
    (timings,) = (tmp_path / "cache").glob("timings-11.4.0.106-Fake_GPU-sm86.cache")
    timings.write_bytes(content)
    plan_from_onnx(graph, PROFILE | {"prompt": ((2, 2, 4),) * 3}, GPU)
    assert fake.builds[-1]["known"] == 0
    assert "does not accept the timings" in caplog.text


def test_all_errors_of_the_parser_are_shown_with_their_nodes(fake: ModuleType, graph: Path) -> None:
    fake.faults.add("parse")
    with pytest.raises(DeviceError, match=r"TensorRT 11.4.0.106 cannot read .*stage_00.onnx") as caught:
        plan_from_onnx(graph, PROFILE, GPU)
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines if line.startswith("node")] == [
        "node 0 '' (Constant)",
        "node 1 '' (Unsqueeze)",
        "node 2 '' (Add)",
    ]
    assert "[ModelImporter.cpp:42 in parseNode]" in lines[1]
    assert lines[2:4] == ["  in function outer", "  in function inner"]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("build", "cannot build a plan for .*: Error Code 2: out of memory"),
        ("profile", "does not accept the shapes .*: TensorRT gave no reason"),
        ("timings", "does not accept an empty timing cache. Reinstall it"),
    ],
)
def test_a_build_that_fails_says_why_and_leaves_nothing(
    fault: str, message: str, fake: ModuleType, graph: Path, tmp_path: Path
) -> None:
    fake.faults.add(fault)
    with pytest.raises(DeviceError, match=message):
        plan_from_onnx(graph, PROFILE, GPU)
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {".lock"}
    fake.faults.clear()
    assert plan_from_onnx(graph, PROFILE, GPU).exists()


def test_a_profile_that_does_not_fit_the_graph_is_refused(fake: ModuleType, graph: Path) -> None:
    with pytest.raises(DeviceError, match="axis 3 of hidden is 4, not"):
        plan_from_onnx(graph, PROFILE | {"hidden": ((1, 3, 2, 8),) * 3}, GPU)


def test_what_tensorrt_says_is_logged_by_its_severity(fake: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    log = tensorrt.tensorrt_logger()
    caplog.set_level(logging.DEBUG, "bbt_fast")
    for severity in fake.ILogger.Severity:
        log.log(severity, severity.name)
    assert [(record.levelname, record.args) for record in caplog.records] == [
        ("WARNING", ("INTERNAL_ERROR",)),
        ("WARNING", ("ERROR",)),
        ("INFO", ("WARNING",)),
        ("DEBUG", ("INFO",)),
    ]
    assert tensorrt.tensorrt_errors() == "INTERNAL_ERROR\nERROR"
    assert tensorrt.tensorrt_errors() == "TensorRT gave no reason"
