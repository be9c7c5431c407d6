"""Check a graph file's references to external weights before a runtime follows them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

from .errors import ArtifactError


def check_weights(model: ir.Model, path: Path) -> None:
    """Check that a graph's external weights are complete and lie in its folder.

    Args:
        model: the loaded graph; its weights are not read.
        path: the graph's file.

    Raises:
        ArtifactError: if a weight is outside the folder or missing.
    """
    folder = path.parent.resolve()
    for tensor in _tensors(model):
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        place = folder / tensor.location
        if Path(tensor.location).is_absolute() or not place.resolve().is_relative_to(folder):
            raise ArtifactError(
                f"{path} reads the weight {tensor.name!r} from {str(tensor.location)!r}, which is outside its folder. "
                "It is not loaded. Use a graph whose weights are beside it."
            )
        begin, size = tensor.offset or 0, tensor.nbytes
        there = place.stat().st_size if place.is_file() else -1
        if there < 0 or begin < 0 or tensor.length not in (None, size) or begin + size > there:
            found = "is missing" if there < 0 else f"has {there} bytes"
            raise ArtifactError(
                f"{path} needs {size} bytes at offset {begin} of {place.name} for the weight {tensor.name!r}, but that "
                f"file {found}. Copy both files again, or export the graph again."
            )


def _tensors(model: ir.Model) -> Iterator[object]:
    """Yield all constants of a model, including those of subgraphs, functions and attributes."""
    yield from (value.const_value for value in model.graph.initializers.values())
    scopes: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for scope in scopes:
        for inner in scope.subgraphs():
            yield from (value.const_value for value in inner.initializers.values())
        for attribute in (attribute for node in scope.all_nodes() for attribute in node.attributes.values()):
            yield attribute.value
            if isinstance(attribute.value, list | tuple):
                yield from attribute.value
