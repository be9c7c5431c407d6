"""Graphs with operators of ONNX Runtime's CUDA provider, run by a reference evaluator on any machine."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM

from bbt_fast.engine import Engine, Examples, load_engine
from bbt_fast.engine.onnx_files import onnx_files
from bbt_fast.export.graphs import node_counts
from bbt_fast.export.model import Encoded

N_PROMPT_TOKENS = 3
LAYERS = 3
Values = np.ndarray[Any, Any]


class PackedMultiHeadAttention(OpRun):
    """As its schema documents it; the layout of the padded positions is checked too."""

    op_domain = "com.microsoft"

    def _run(
        self, query: Values, key: Values, value: Values, bias: Values | None, offset: Values, bounds: Values, **how: Any
    ) -> tuple[Values]:
        texts, longest = offset.shape
        assert bias is None
        assert offset.dtype == bounds.dtype == np.int32
        assert bounds.tolist()[0] == 0
        assert bounds.shape == (texts + 1,)
        assert bounds[-1] == len(query) == len(key) == len(value)
        assert sorted(offset.flatten().tolist()) == list(range(texts * longest))
        out = torch.empty(query.shape)
        for text, (begin, end) in enumerate(pairwise(bounds.tolist())):
            assert offset.flatten()[begin:end].tolist() == list(range(text * longest, text * longest + end - begin))
            q, k, v = (
                torch.from_numpy(part[begin:end]).unflatten(1, (how["num_heads"], -1)).transpose(0, 1)
                for part in (query, key, value)
            )
            seen = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=how["scale"])
            out[begin:end] = seen.transpose(0, 1).flatten(1)
        return (out.numpy(),)


class BiasGelu(OpRun):
    """As its schema documents it."""

    op_domain = "com.microsoft"

    def _run(self, x: Values, bias: Values) -> tuple[Values]:
        return (torch.nn.functional.gelu(torch.from_numpy(x + bias)).numpy(),)


class SkipLayerNormalization(OpRun):
    """As its schema documents it; outputs that nothing reads are not asked for."""

    op_domain = "com.microsoft"

    def _run(
        self, x: Values, skip: Values, gamma: Values, beta: Values, bias: Values, epsilon: float
    ) -> tuple[Values, ...]:
        total = torch.from_numpy(x + skip + bias)
        norm = torch.nn.functional.layer_norm(total, x.shape[-1:], torch.tensor(gamma), torch.tensor(beta), epsilon)
        return (norm.numpy(),)


@cache
def model() -> BertForMaskedLM:
    """A tiny BERT whose biases and norms are random, so that a graph that drops one is wrong."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = BertForMaskedLM(
            BertConfig(
                num_hidden_layers=LAYERS,
                hidden_size=32,
                num_attention_heads=4,
                intermediate_size=64,
                layer_norm_eps=1e-5,
                vocab_size=60,
                initializer_range=0.2,
            )
        )
        with torch.no_grad():
            for parameter in made.parameters():
                if parameter.ndim == 1:
                    parameter += 0.2 * torch.randn_like(parameter)
    return made.eval().requires_grad_(False)


@cache
def plain(mode: str, cuts: str) -> Engine:
    """PyTorch on padded texts, the reference."""
    return load_engine(
        "torch", model(), mode=mode, n_prompt_tokens=N_PROMPT_TOKENS, cuts=cuts, precision="fp32", device="cpu"
    )


def texts() -> Examples:
    """Four texts of different lengths."""
    lengths = torch.tensor([7, 12, 9, 9])
    ids = torch.randint(5, 60, (4, 12), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(12) < lengths[:, None]).long()
    return Examples(ids, mask, lengths - 2, torch.tensor([11, 12, 13]))


@cache
def built(mode: str, cuts: str) -> tuple[Encoded, tuple[Path, ...]]:
    """The packed texts, and the graphs for them."""
    engine = plain(mode, cuts)
    encoded = engine.staged.encode(texts(), kernel="contrib")
    return encoded, onnx_files(engine.staged, encoded, torch.float32, fused=True).paths


def evaluated(path: Path, feed: dict[str, Values]) -> Values:
    """The answer of a graph by the evaluator of the onnx package, with ONNX Runtime's operators from above."""
    operators: Any = [PackedMultiHeadAttention, BiasGelu, SkipLayerNormalization]
    answer: Values = ReferenceEvaluator(onnx.load(path), new_ops=operators).run(None, feed)[0]
    return answer


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["add", "cat"])
@pytest.mark.parametrize("cuts", ["input", "layers"])
def test_packed_and_fused_graphs_answer_as_pytorch_does(mode: str, cuts: str) -> None:
    engine, (encoded, paths) = plain(mode, cuts), built(mode, cuts)
    prompts = torch.randn(4, N_PROMPT_TOKENS, 32, generator=torch.Generator().manual_seed(1))
    tensors = encoded.tensors_for(len(prompts))
    hidden: Values = encoded.hidden.numpy()
    for number, (path, stage) in enumerate(zip(paths, encoded.stages, strict=True)):
        prompt: Tensor = prompts if number == 0 else torch.zeros(1, N_PROMPT_TOKENS, 32)
        given = {name: tensors[name].numpy() for name in (*stage.join.names, *stage.names)}
        hidden = evaluated(path, {"hidden": hidden, "prompt": prompt.numpy()} | given)
        hidden = hidden if stage.answers else hidden[:, None]
    torch.testing.assert_close(torch.from_numpy(hidden), engine.open(texts()).evaluate(prompts), atol=1e-5, rtol=0)


def test_each_layer_but_the_last_is_one_attention_two_norms_and_one_gelu() -> None:
    counts = node_counts(built("add", "input")[1][0])
    assert counts["PackedMultiHeadAttention"] == LAYERS - 1
    assert counts["SkipLayerNormalization"] == 2 * LAYERS
    assert counts["BiasGelu"] == LAYERS
    assert counts["Attention"] == 0


def test_keys_have_no_bias_and_values_leave_theirs_to_the_product_that_follows() -> None:
    graph = onnx.load(built("add", "input")[1][0]).graph
    made = {name: node for node in graph.node for name in node.output}
    (first, *_) = (node for node in graph.node if node.op_type == "PackedMultiHeadAttention")

    def source(name: str) -> str:
        while made[name].op_type == "Reshape":
            name = made[name].input[0]
        return str(made[name].op_type)

    assert [source(name) for name in first.input[:3]] == ["Add", "MatMul", "MatMul"]
    layer = model().bert.encoder.layer[0].attention
    expected = layer.output.dense.bias + layer.output.dense.weight @ layer.self.value.bias
    vectors = [onnx.numpy_helper.to_array(one) for one in graph.initializer if one.dims == [32]]
    assert any(np.allclose(vector, expected.numpy(), atol=1e-6) for vector in vectors)


def test_a_layer_returns_what_its_last_norm_writes_and_no_view_of_it() -> None:
    for path in built("add", "layers")[1][:-1]:
        graph = onnx.load(path).graph
        (output,) = graph.output
        (last,) = (node for node in graph.node if output.name in node.output)
        assert last.op_type == "SkipLayerNormalization"
        assert [one.dim_param or one.dim_value for one in output.type.tensor_type.shape.dim] == ["rows", "tokens", 32]


def test_outputs_of_fused_norms_that_nothing_reads_are_not_asked_for() -> None:
    graph = onnx.load(built("add", "input")[1][0]).graph
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    for node in graph.node:
        assert all(name in read for name in node.output if name), node.op_type
