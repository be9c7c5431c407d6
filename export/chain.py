"""Concatenate the graphs of consecutive layers.

Each graph takes the hidden states ``[P, N, S, H]`` that its predecessor returns, and computes on ``[B, S, H]``. Between
two graphs, both reshapes are removed, and shapes are read from the first input only. This is safe because PyTorch's
exporter names the axes of each value, and axes with the same name have the same size.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.passes import common


def chain(models: Sequence[ir.Model], names: Sequence[str]) -> ir.Model:
    """Return one unoptimized graph that runs these graphs in order.

    Args:
        models: graphs ``(hidden, *names) -> hidden``; the last may return something else. They are modified.
        names: the inputs of the result after the hidden states, in order.
    """
    whole = models[0]
    first = whole.graph.inputs[0]
    given = {str(value.name): value for value in whole.graph.inputs}
    for number, model in enumerate(models):
        result = str(model.graph.outputs[0].name)
        rename(model.graph, f"layer_{number}")
        if number:
            _append(whole, model, given)
    for value in [*whole.graph.inputs]:
        whole.graph.inputs.remove(value)
    whole.graph.inputs.extend([first, *(given[name] for name in names)])
    whole.graph.outputs[0].name = result
    remove_duplicates(whole)
    return whole


def remove_duplicates(model: ir.Model) -> None:
    """Merge nodes that compute the same, and drop those that nothing reads."""
    for step in (common.NameFixPass(), common.CommonSubexpressionEliminationPass(), common.RemoveUnusedNodesPass()):
        step(model)


def rename(graph: ir.Graph, prefix: str) -> None:
    """Prefix the names of a graph's values and initializers."""
    for value in [value for node in graph for value in node.outputs] + list(graph.initializers.values()):
        value.name = f"{prefix}.{value.name}"


def _append(whole: ir.Model, model: ir.Model, given: dict[str, ir.Value]) -> None:
    """Append a graph to another."""
    hidden, *others = model.graph.inputs
    (before,) = whole.graph.outputs
    _meet(whole.graph.inputs[0], before, hidden)
    for value in others:
        name = str(value.name)
        if name in given:
            value.replace_all_uses_with(given[name])
        else:
            given[name] = value
    model.graph.inputs.clear()
    initializers, outputs, nodes = list(model.graph.initializers.values()), list(model.graph.outputs), list(model.graph)
    model.graph.initializers.clear()
    model.graph.outputs.clear()
    model.graph.remove(nodes)
    whole.graph.extend(nodes)
    for value in initializers:
        whole.graph.register_initializer(value)
    whole.graph.outputs[:] = outputs
    whole.functions.update(model.functions)
    whole.graph.opset_imports.update(model.graph.opset_imports)


def _meet(first: ir.Value, before: ir.Value, hidden: ir.Value) -> None:
    """Connect a graph's hidden states to the output of its predecessor.

    Args:
        first: the input of the first graph.
        before: the output of the predecessor.
        hidden: the input of the next graph.
    """
    reshape = before.producer()
    flat = reshape.inputs[0] if reshape is not None and reshape.op_type == "Reshape" else None
    for use in [*hidden.uses()]:
        node = use.node
        if node.op_type == "Shape" and first.shape == hidden.shape:
            node.replace_input_with(use.idx, first)
        elif node.op_type == "Reshape" and flat is not None and flat.shape == node.outputs[0].shape:
            node.outputs[0].replace_all_uses_with(flat)
        else:
            node.replace_input_with(use.idx, before)
