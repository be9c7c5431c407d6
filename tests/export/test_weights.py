"""A graph's weights are taken from its own folder, and only if they are all there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from bbt_fast.export.errors import ArtifactError
from bbt_fast.export.weights import check_weights

SIZE = 6


def external(location: str, offset: int | None = None, length: int | None = None, size: int = SIZE) -> TensorProto:
    """Return a float tensor whose values lie in another file."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[size], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    return tensor


def initializer(tensor: TensorProto) -> onnx.GraphProto:
    """A graph with a tensor among its weights."""
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    return helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "g", [], [output], [tensor])


def attribute(tensor: TensorProto) -> onnx.GraphProto:
    """A graph with a tensor in an attribute of a node."""
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    return helper.make_graph([helper.make_node("Constant", [], ["y"], value=tensor)], "g", [], [output])


def subgraph(tensor: TensorProto) -> onnx.GraphProto:
    """A graph with a tensor in the branches of an If node."""
    output = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    condition = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    inner = initializer(tensor)
    node = helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner)
    return helper.make_graph([node], "g", [condition], [output])


def check(graph: onnx.GraphProto, folder: Path) -> None:
    """Write a graph to a folder and check where its weights are."""
    path = folder / "graph.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    check_weights(ir.load(path), path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A graph's folder, with its weights in it, others beside it, and a link that leads there."""
    (tmp_path / "inside").mkdir()
    np.zeros(SIZE, np.float32).tofile(tmp_path / "outside.data")
    np.zeros(SIZE, np.float32).tofile(tmp_path / "inside" / "graph.onnx.data")
    (tmp_path / "inside" / "link.data").symlink_to(tmp_path / "outside.data")
    return tmp_path / "inside"


WHERE = pytest.mark.parametrize("where", [initializer, attribute, subgraph])


@WHERE
def test_weights_beside_the_graph_are_taken(where: Callable[[TensorProto], onnx.GraphProto], folder: Path) -> None:
    check(where(external("graph.onnx.data")), folder)
    check(where(external("graph.onnx.data", 4, 4 * (SIZE - 1), SIZE - 1)), folder)


@WHERE
@pytest.mark.parametrize("location", ["../outside.data", "link.data", "/etc/passwd", "a/../../outside.data"])
def test_weights_outside_the_folder_are_refused(
    where: Callable[[TensorProto], onnx.GraphProto], location: str, folder: Path
) -> None:
    with pytest.raises(ArtifactError, match=r"graph\.onnx reads the weight 'w' from .*, which is outside its folder"):
        check(where(external(location)), folder)


@WHERE
@pytest.mark.parametrize(
    ("tensor", "found"),
    [
        (external("gone.data"), "gone.data .*is missing"),
        (external("graph.onnx.data", 4), "has 24 bytes"),
        (external("graph.onnx.data", size=10**12), "needs 4000000000000 bytes .*has 24 bytes"),
        (external("graph.onnx.data", length=8), "has 24 bytes"),
    ],
)
def test_weights_that_are_not_all_there_are_refused_before_anything_is_allocated(
    where: Callable[[TensorProto], onnx.GraphProto], tensor: TensorProto, found: str, folder: Path
) -> None:
    with pytest.raises(ArtifactError, match=found):
        check(where(tensor), folder)
