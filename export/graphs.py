"""A stage becomes a static ONNX graph."""

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

from .fusion import fuse, leave_unread
from .stages import ANSWER_AXES, Stage
from .texts import Axes
from .traces import graph_of

OPSET = 23
"""The first with a standard ``Attention`` operator."""

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
"""What a trace is made with, by what an axis counts: every size becomes a variable, so any will do."""

ONNX_TYPES = {torch.float32: "float", torch.float16: "float16", torch.bfloat16: "bfloat16"}
"""Graph dtypes and their names in ONNX."""

INLINE_BYTES = 1 << 30
"""Larger weights go into an external data file: a protobuf ends at 2 GiB."""

TELLER = "torch.onnx._internal.exporter._registration"
"""The logger that tells, on standard error, which packages PyTorch's exporter would know more operators with."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Source:
    """What a graph is made from."""

    stage: Stage
    dtype: torch.dtype
    joined: tuple[Tensor, ...]
    """Samples of what enters the layers, prompt joined, hidden states [P, N, S, H] first; only their shapes count."""
    prompt_size: int
    """The width of what joins."""
    tensors: tuple[Tensor, ...]
    """Samples of what else the stage takes, in order of its names; only their shapes and types count."""
    fused: bool = False
    """Whether operators of ONNX Runtime's own take the place of several standard ones."""

    def samples(self) -> dict[str, Tensor]:
        """Return what to trace the stage with, in the graph's dtypes and of SIZES: all batches' traces are one."""
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
    """Write a graph, its weights in ``<name>.data`` beside it if they are large."""
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    ir.save(model, path, external_data=f"{path.name}.data" if size > INLINE_BYTES else None)


def cast_dtype(name: str, own: torch.dtype, dtype: torch.dtype) -> torch.dtype:
    """Return what a stage's tensor is in a graph; indices, masks and the label words' rows keep their own dtype."""
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
    with warnings.catch_warnings(), quiet(TELLER), torch.no_grad():
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
    """Let a logger of another library report errors only; without a name the root."""
    teller = logging.getLogger(name)
    usual = teller.level
    teller.setLevel(logging.ERROR)
    try:
        yield
    finally:
        teller.setLevel(usual)


def _prepend_join(model: ir.Model, source: Source) -> None:
    """Let the prompt join inside the graph: what the join returns becomes ``hidden`` and ``prompt``.

    Traced with one population size for both, their dimensions would be taken for equal; here either may be 1.
    """
    hidden_size, dtype = source.joined[0].shape[-1], ONNX_TYPES[source.dtype]
    prelude = source.stage.join.prelude(hidden_size, source.prompt_size, dtype, OPSET).graph
    traced, results = list(model.graph.inputs[: len(prelude.outputs)]), list(prelude.outputs)
    inputs = list(prelude.inputs)
    for value in (v for node in prelude for v in node.outputs):
        value.name = f"join.{value.name}"
    nodes = list(prelude)
    prelude.outputs.clear()
    prelude.inputs.clear()
    prelude.remove(nodes)
    model.graph.insert_before(model.graph[0], nodes)
    ir.convenience.replace_all_uses_with(traced, results)
    model.graph.inputs[: len(traced)] = inputs


def _check_attention(model: ir.Model, source: Source) -> None:
    """Make sure that the fast kernels will run: they need operators that stand for attention as a whole."""
    operators = ("Attention", "PackedMultiHeadAttention")
    found = sum(node.op_type in operators for node in model.graph.all_nodes())
    if found != source.stage.n_attentions:
        logger.warning("the graph has %d Attention nodes for %d layers", found, source.stage.n_attentions)


def _fuse(model: ir.Model, source: Source) -> None:
    """Put fused operators in, if asked to, and fold what the join repeats."""
    if source.fused:
        fuse(model)
    tidy(model)
    leave_unread(model)


def tidy(model: ir.Model) -> None:
    """Fold what is computed twice, and drop the exporter's notes: stack traces with file names."""
    for step in (
        common.NameFixPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.ClearMetadataAndDocStringPass(),
    ):
        step(model)


PASSES: tuple[Callable[[ir.Model, Source], None], ...] = (_prepend_join, _check_attention, _fuse)
