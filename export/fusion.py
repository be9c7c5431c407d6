"""Fuse standard operators into operators of ONNX Runtime.

onnxscript provides all rewrite rules but one: removing the biases of keys and values. A bias b on all keys adds the
same q b' to all scores of a query, which does not change the softmax. A bias on the values can move behind attention:
the softmax weights w sum to 1, so w (V + b) = w V + b, and the output projection turns b into a bias of its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter.ort_fusions.bias_gelu import fuse_bias_gelu
from onnxscript.rewriter.ort_fusions.skip_normalization import fuse_skip_layer_normalization

MICROSOFT = "com.microsoft"
VIEWS = ("Reshape", "Transpose", "Squeeze", "Unsqueeze")


def fuse(model: ir.Model) -> None:
    """Fuse operators in a graph."""
    _move_biases(model)
    fuse_bias_gelu(model)
    fuse_skip_layer_normalization(model)
    _end_in_norm(model)
    if MICROSOFT in {node.domain for node in model.graph.all_nodes()}:
        model.graph.opset_imports[MICROSOFT] = 1


def leave_unread(model: ir.Model) -> None:
    """Unname the unused outputs of fused operators, so that the kernel does not compute and write them."""
    for node in model.graph.all_nodes():
        if node.op_type == "SkipLayerNormalization":
            for output in node.outputs[1:]:
                if not output.uses() and not output.is_graph_output():
                    output.name = ""


def _end_in_norm(model: ir.Model) -> None:
    """Let a graph return a norm's output [B, S, H] without the final Reshape: on CUDA that would be a copy."""
    (output,) = model.graph.outputs
    view = output.producer()
    norm = None if view is None or view.op_type != "Reshape" or view.inputs[0] is None else view.inputs[0].producer()
    if norm is None or norm.op_type != "SkipLayerNormalization" or output.shape is None or output.type is None:
        return
    states = norm.outputs[0]
    states.name, output.name = output.name, f"{output.name}.view"
    states.shape, states.type = ir.Shape(["rows", *output.shape[2:]]), output.type
    model.graph.outputs[0] = states


def _move_biases(model: ir.Model) -> None:
    """Remove the key bias before packed attention, and move the value bias into the output projection's bias."""
    for node in [node for node in model.graph.all_nodes() if node.op_type == "PackedMultiHeadAttention"]:
        _, key, value, *_ = node.inputs
        added = _added_bias(key)
        if added is not None:
            _bypass(added)
        added, projected = _added_bias(value), _next_product(node.outputs[0])
        if added is None or projected is None:
            continue
        product, bias = projected
        weight, moved = product.inputs[1], _constant(added)
        assert weight is not None
        if weight.const_value is None or bias.const_value is None:
            continue
        total = bias.const_value.numpy() + moved.astype(np.float32) @ weight.const_value.numpy().astype(np.float32)
        name = f"{product.outputs[0].name}.bias"
        model.graph.register_initializer(
            new := ir.Value(name=name, const_value=ir.tensor(total.astype(moved.dtype), name=name))
        )
        new.shape = bias.shape
        if bias.dtype is not None:
            new.dtype = bias.dtype
        (sum_node,) = (use.node for use in product.outputs[0].uses())
        sum_node.replace_input_with(list(sum_node.inputs).index(bias), new)
        _bypass(added)


def _added_bias(value: ir.Value | None) -> ir.Node | None:
    """Return the node that adds a constant vector, with only views between it and this value, or None."""
    while value is not None and (node := value.producer()) is not None and len(value.uses()) == 1:
        if node.op_type == "Add":
            return node if any(_is_vector(one) for one in node.inputs) else None
        if node.op_type not in VIEWS:
            return None
        value = node.inputs[0]
    return None


def _next_product(value: ir.Value) -> tuple[ir.Node, ir.Value] | None:
    """Return the matrix product that reads a value, with only views in between, and the bias added to it, or None."""
    while len(value.uses()) == 1:
        (use,) = value.uses()
        if use.node.op_type == "MatMul" and use.idx == 0:
            (following,) = (one.node for one in use.node.outputs[0].uses())
            vectors = [one for one in following.inputs if _is_vector(one)]
            return (use.node, vectors[0]) if following.op_type == "Add" and vectors and vectors[0] is not None else None
        if use.node.op_type not in VIEWS:
            return None
        value = use.node.outputs[0]
    return None


def _is_vector(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None and len(value.const_value.shape) == 1


def _constant(node: ir.Node) -> np.ndarray[Any, Any]:
    (vector,) = (one for one in node.inputs if _is_vector(one))
    assert vector is not None
    assert vector.const_value is not None
    return vector.const_value.numpy()


def _bypass(node: ir.Node) -> None:
    """Replace the sum with a vector by the other summand."""
    (other,) = (one for one in node.inputs if not _is_vector(one))
    assert other is not None
    ir.convenience.replace_all_uses_with(node.outputs[0], other)
