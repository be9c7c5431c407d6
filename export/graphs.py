"""Export a stage to an ONNX graph."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes import common
from torch import Tensor

from .chain import remove_duplicates, rename
from .fusion import fuse, leave_unread
from .stages import ANSWER_AXES, Stage
from .texts import Axes
from .traces import graph_of

OPSET = 23
"""The first opset with a standard ``Attention`` operator."""

SIZES = {
    "population": 2,
    "examples": 7,
    "sequence": 61,
    "target": 13,
    "tokens": 7 * 61,
    "labels": 11,
    "texts": 2 * 7,
    "bounds": 2 * 7 + 1,
    "keys": 7 * 61,
}
"""Axis sizes of the trace, by what the axis counts. Every axis becomes symbolic, so the values are arbitrary."""

ONNX_TYPES = {torch.float32: "float", torch.float16: "float16", torch.bfloat16: "bfloat16"}
"""Graph dtypes and their names in ONNX."""

INLINE_BYTES = 1 << 30
"""Larger weights go into an external data file: a protobuf is limited to 2 GiB."""

EXPORTER_LOGGER = "torch.onnx._internal.exporter._registration"
"""PyTorch's logger that recommends optional packages on standard error."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Source:
    """The inputs of an export."""

    stage: Stage
    dtype: torch.dtype
    joined: tuple[Tensor, ...]
    """Samples of the layers' inputs after the join, hidden states [P, N, S, H] first; only their shapes matter."""
    prompt_size: int
    """The width of the prompt that joins."""
    tensors: tuple[Tensor, ...]
    """Samples of the stage's other inputs, in the order of its names; only their shapes and dtypes matter."""
    fused: bool = False
    """Whether to fuse standard operators into operators of ONNX Runtime."""

    def samples(self) -> dict[str, Tensor]:
        """Return zeros to trace the stage with, in the graph's dtypes; with SIZES all batches share one trace."""
        axes: dict[str, Axes] = {**self.stage.joined_axes, **self.stage.axes}
        return {
            name: torch.zeros(
                [SIZES[what] if what else size for what, size in zip(axes[name], one.shape, strict=True)],
                dtype=cast_dtype(name, one.dtype, self.dtype),
            )
            for name, one in zip(axes, (*self.joined, *self.tensors), strict=True)
        }


def onnx_from_stage(source: Source) -> ir.Model:
    """Return the graph ``(hidden, prompt, *names) -> hidden or logits`` of a stage, weights included."""
    model = graph_of(source.stage, source.samples(), source.dtype, _trace)
    for step in PASSES:
        step(model, source)
    return model


def save_graph(model: ir.Model, path: Path) -> None:
    """Write a graph; large weights go to ``<name>.data`` beside it."""
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    ir.save(model, path, external_data=f"{path.name}.data" if size > INLINE_BYTES else None)


def cast_dtype(name: str, own: torch.dtype, dtype: torch.dtype) -> torch.dtype:
    """Return a tensor's dtype in a graph; indices, masks and the label words' rows keep their own."""
    return dtype if own.is_floating_point and name not in ANSWER_AXES else own


def node_counts(path: Path) -> Counter[str]:
    """Count a graph file's nodes by operator."""
    return Counter(node.op_type for node in ir.load(path).graph.all_nodes())


def _trace(stage: Stage, samples: tuple[Tensor, ...]) -> ir.Model:
    """Trace a stage with PyTorch's exporter; SDPA becomes one ``Attention`` node per layer."""
    dims: dict[str, torch.export.Dim] = {}

    def dynamic(axes: tuple[str | None, ...]) -> dict[int, torch.export.Dim]:
        return {i: dims.setdefault(a, torch.export.Dim(a, min=2, max=1 << 20)) for i, a in enumerate(axes) if a}

    shapes: dict[str, Any] = {name: dynamic(axes) for name, axes in stage.joined_axes.items()}
    if stage.names:
        shapes["tensors"] = tuple(dynamic(stage.axes[name]) for name in stage.names)
    with warnings.catch_warnings(), quiet(EXPORTER_LOGGER), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            stage,
            samples,
            dynamo=True,
            optimize=False,
            opset_version=OPSET,
            input_names=[*stage.join.outputs, *stage.names],
            output_names=["logits" if stage.answers else "next_hidden"],
            dynamic_shapes=shapes,
            verbose=False,
        )
    assert program is not None
    return program.model


@contextmanager
def quiet(name: str = "") -> Iterator[None]:
    """Limit a logger to errors within this block; without a name the root logger."""
    other = logging.getLogger(name)
    level = other.level
    other.setLevel(logging.ERROR)
    try:
        yield
    finally:
        other.setLevel(level)


def _prepend_join(model: ir.Model, source: Source) -> None:
    """Insert the join before the stage: the graph's inputs become ``hidden`` and ``prompt``.

    A trace would assume the same population size for both; this way either may be 1.
    """
    hidden_size, dtype = source.joined[0].shape[-1], ONNX_TYPES[source.dtype]
    prelude = source.stage.join.prelude(hidden_size, source.prompt_size, dtype, OPSET).graph
    traced, results = list(model.graph.inputs[: len(prelude.outputs)]), list(prelude.outputs)
    inputs = list(prelude.inputs)
    rename(prelude, "join")
    nodes = list(prelude)
    prelude.outputs.clear()
    prelude.inputs.clear()
    prelude.remove(nodes)
    model.graph.insert_before(model.graph[0], nodes)
    ir.convenience.replace_all_uses_with(traced, results)
    model.graph.inputs[: len(traced)] = inputs


def _check_attention(model: ir.Model, source: Source) -> None:
    """Warn if attention was decomposed into several operators: the fast kernels would not run."""
    operators = ("Attention", "PackedMultiHeadAttention")
    found = sum(node.op_type in operators for node in model.graph.all_nodes())
    if found != source.stage.n_attentions:
        logger.warning("the graph has %d Attention nodes for %d layers", found, source.stage.n_attentions)


def _fuse(model: ir.Model, source: Source) -> None:
    """Fuse operators if asked to, and remove duplicate nodes that the join has added."""
    if source.fused:
        fuse(model)
    tidy(model)
    leave_unread(model)


def tidy(model: ir.Model) -> None:
    """Remove duplicate and unused nodes and the exporter's metadata, which holds stack traces with file names."""
    remove_duplicates(model)
    common.ClearMetadataAndDocStringPass()(model)


PASSES: tuple[Callable[[ir.Model, Source], None], ...] = (_prepend_join, _check_attention, _fuse)
