"""A stage's graph: standard operators, one mode only, and nothing of this machine in it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from transformers import PreTrainedModel

from bbt_fast.engine import Examples, load_engine
from bbt_fast.export.graphs import node_counts

N_PROMPT_TOKENS = 5


@cache
def graphs(model: PreTrainedModel, mode: str, cuts: str, precision: str = "fp32") -> tuple[Path, ...]:
    """The exported graphs of a model, built once for the same arguments."""
    engine = load_engine(
        "ort", model, mode=mode, n_prompt_tokens=N_PROMPT_TOKENS, cuts=cuts, precision=precision, device="cpu"
    )
    return engine.artifacts


@pytest.mark.parametrize("kind", ["roberta", pytest.param("bert", marks=pytest.mark.slow)])
@pytest.mark.parametrize("mode", ["add", "cat"])
def test_every_layer_but_the_last_has_exactly_one_attention_node(
    kind: str, mode: str, request: pytest.FixtureRequest
) -> None:
    model: PreTrainedModel = request.getfixturevalue(kind)
    layers = model.config.num_hidden_layers
    whole = graphs(model, mode, "input")
    assert [node_counts(path)["Attention"] for path in whole] == [layers - 1]
    assert [node_counts(path)["Attention"] for path in graphs(model, mode, "layers")] == [1] * (layers - 1) + [0]


def test_the_last_layer_makes_no_keys_and_values(roberta: PreTrainedModel) -> None:
    last = onnx.load(graphs(roberta, "add", "layers")[-1])
    attention = roberta.roberta.encoder.layer[-1].attention.self
    weights = {onnx.numpy_helper.to_array(one).tobytes(): one.name for one in last.graph.initializer}
    query = weights[attention.query.weight.T.contiguous().numpy().tobytes()]
    whole = [weights.get(one.weight.T.contiguous().numpy().tobytes()) for one in (attention.key, attention.value)]
    products = {name for node in last.graph.node if node.op_type in ("MatMul", "Gemm") for name in node.input}
    assert query in products
    assert not products & set(whole)


def test_layer_norms_and_gelus_stay_whole_for_the_fused_kernels(roberta: PreTrainedModel) -> None:
    counts = node_counts(graphs(roberta, "add", "input")[0])
    layers = roberta.config.num_hidden_layers
    assert counts["LayerNormalization"] == 2 * layers + 1
    assert counts["Gelu"] == layers + 1
    assert counts["Softmax"] == 1  # of the answer's position
    assert not {"Erf", "Pow", "If", "Loop", "Where"} & set(counts)


def test_the_graph_of_one_mode_holds_no_node_of_the_other(roberta: PreTrainedModel) -> None:
    def joining(mode: str) -> set[str]:
        model = onnx.load(graphs(roberta, mode, "input")[0])
        produced = {name: node for node in model.graph.node for name in node.output}
        joined = next(node for node in model.graph.node if "joined" in node.output[0])
        seen: set[str] = set()
        waiting = [joined]
        while waiting:
            node = waiting.pop()
            seen.add(node.op_type)
            waiting += [produced[name] for name in node.input if name in produced]
        return seen

    assert joining("add") >= {"Add", "Pad"}
    assert joining("cat") >= {"Expand"}
    assert "Pad" not in joining("cat")
    assert "Expand" not in joining("add")


def test_dimensions_are_named_and_the_prompt_length_is_fixed(roberta: PreTrainedModel) -> None:
    session_inputs = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in onnx.load(graphs(roberta, "add", "input")[0]).graph.input
    }
    hidden = roberta.config.hidden_size
    assert session_inputs["hidden"] == ["hidden_population", "examples", "sequence", hidden]
    assert session_inputs["prompt"] == ["prompt_population", N_PROMPT_TOKENS, hidden]
    assert session_inputs["label_rows"] == ["labels", hidden]


def test_only_the_answering_stage_computes_the_head_and_only_label_words(roberta: PreTrainedModel) -> None:
    first, *_, last = [onnx.load(path) for path in graphs(roberta, "add", "layers")]
    vocabulary = roberta.config.vocab_size
    assert [value.name for value in first.graph.output] == ["next_hidden"]
    assert [value.name for value in last.graph.output] == ["logits"]
    assert not any(vocabulary in initializer.dims for initializer in last.graph.initializer)


def test_a_graph_holds_no_file_names(roberta: PreTrainedModel) -> None:
    content = graphs(roberta, "add", "input")[0].read_bytes()
    assert b"modeling_" not in content
    assert b".py" not in content


def test_fp16_graphs_are_built_and_run_without_a_gpu(
    roberta: PreTrainedModel, make_examples: Callable[..., Examples], make_prompts: Callable[..., torch.Tensor]
) -> None:
    model = onnx.load(graphs(roberta, "add", "input", "fp16")[0])
    weights = [i for i in model.graph.initializer if i.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)]
    large = [i for i in weights if np.prod(i.dims) > 1]
    assert large
    assert all(i.data_type == onnx.TensorProto.FLOAT16 for i in large)
    examples, prompts = make_examples(roberta, "add", N_PROMPT_TOKENS), make_prompts(roberta, 3, N_PROMPT_TOKENS)
    half, full = (
        load_engine(name, roberta, n_prompt_tokens=N_PROMPT_TOKENS, precision=precision, device="cpu")
        .open(examples)
        .evaluate(prompts)
        for name, precision in (("ort", "fp16"), ("torch", "fp32"))
    )
    assert half.dtype is torch.float32
    torch.testing.assert_close(half, full, atol=0.05, rtol=0)
    assert not torch.equal(half, full)
