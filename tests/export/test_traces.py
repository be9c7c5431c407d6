"""Stages that differ in weights alone share a trace, and their graphs are those of traces of their own."""

from __future__ import annotations

from collections import Counter
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from torch import nn

from bbt_fast.benchmarks.harness.tiny import TINY, tiny_model
from bbt_fast.engine.onnx_files import _source
from bbt_fast.export import graphs, traces
from bbt_fast.export.families import FAMILIES
from bbt_fast.export.graphs import Source, onnx_from_stage
from bbt_fast.export.model import Encoded, StagedModel
from bbt_fast.export.parity import probe_examples
from bbt_fast.export.traces import cast_weights, structure, with_weights

LAYERS = 4
FAST = ("roberta", "add", torch.float16)
ALIKE = {"bert", "electra", "cpt", "qwen2"}
"""Families whose layers are RoBERTa's or, but for biases, Llama's."""
CASES = [
    pytest.param(*case, id="-".join(map(str, case)), marks=() if case == FAST else pytest.mark.slow)
    for case in [
        FAST,
        *(
            (family.model_types[0], mode, torch.float32)
            for family, mode in zip(FAMILIES, cycle(("add", "cat")))
            if family.model_types[0] not in ALIKE
        ),
    ]
]


@cache
def encode(model_type: str, mode: str, granularity: str = "layers", padded: bool = True) -> Encoded:
    """A tiny model's stages for its probe examples, recorded once for the same arguments."""
    family = next(one for one in FAMILIES if model_type in one.model_types)
    staged = StagedModel(tiny_model(family, model_type, num_hidden_layers=LAYERS), mode, 7, granularity)
    examples = probe_examples(staged)
    if not padded:  # texts of one length have no mask
        examples = examples.select(torch.arange(4))
    return staged.encode(examples, share_prefix=staged.shares_prefix(examples))


def content(source: Source) -> bytes:
    """The exported graph of a stage, as bytes."""
    return ir.to_proto(onnx_from_stage(source)).SerializeToString(deterministic=True)


@pytest.mark.parametrize(("model_type", "mode", "dtype"), CASES)
def test_a_shared_trace_gives_the_very_file_that_a_trace_of_the_stage_gives(
    model_type: str, mode: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = graphs._trace
    encoded = encode(model_type, mode, padded=False)  # as in a bucket, of which other tests have traces
    chains = {"texts": encoded} if encoded.prefix is None else {"texts": encoded, "prefix": encoded.prefix}
    traced: list[Any] = []
    monkeypatch.setattr(graphs, "_trace", lambda *given: traced.append(given) or trace(*given))
    for name, chain in chains.items():
        traced.clear()
        shared = [content(_source(chain, dtype, stage, fused=False)) for stage in range(LAYERS - 1)]
        # Fewer than layers, and none if other tests have traced such layers.
        assert len(traced) < LAYERS - 1 or model_type == "modernbert"  # its layers see near and far by turns
        assert len(set(shared)) == len(shared) or model_type == "albert"  # whose layers share their weights too
        with monkeypatch.context() as patch:
            patch.setenv("BBT_FAST_CACHE", str(tmp_path / name))
            assert shared[1] == content(_source(chain, dtype, 1, fused=False))


@pytest.mark.slow
def test_layers_traced_one_by_one_make_the_graph_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    source = _source(encode("roberta", "add", "input"), torch.float32, 0, fused=True)
    assert len(source.stage.links()) == LAYERS
    chained = onnx_from_stage(source)
    monkeypatch.setattr("bbt_fast.export.stages.Stage.links", lambda self: (self,))
    whole = onnx_from_stage(source)
    count, expected = (Counter(node.op_type for node in model.graph.all_nodes()) for model in (chained, whole))
    assert count == expected
    for one, other in ((chained.graph.inputs, whole.graph.inputs), (chained.graph.outputs, whole.graph.outputs)):
        assert [value.name for value in one] == [value.name for value in other]
    assert sorted(map(size_of, chained.graph.initializers.values())) == sorted(
        map(size_of, whole.graph.initializers.values())
    )


def size_of(weight: ir.Value) -> int:
    assert weight.const_value is not None
    return weight.const_value.nbytes


def signature(stage: Any, dtype: torch.dtype = torch.float32) -> str | None:
    """The structure of a stage, by which stages share a trace."""
    hidden = torch.zeros(2, 6, 20, TINY["hidden_size"], dtype=dtype)
    mask = torch.ones(6, 1, 20, 20, dtype=torch.bool)
    return structure(stage, cast_weights(stage, dtype), (hidden, mask))


def test_stages_are_of_one_structure_only_if_they_compute_the_same() -> None:
    first, second, *_ = encode("roberta", "add").stages
    assert signature(first) == signature(second)
    assert signature(first) != signature(first, torch.float16)
    other = with_weights(second, cast_weights(second, torch.float32))
    layer: Any = other.layers.stack[0]
    layer.output.LayerNorm.eps *= 2
    assert signature(other) != signature(second)
    layer.output.LayerNorm.eps /= 2
    assert signature(other) == signature(second)
    layer.output.dense.weight = nn.Parameter(layer.intermediate.dense.weight.T)  # not contiguous
    assert signature(other) != signature(second)
    layer.output.dense.weight = second.layers.stack[0].output.dense.weight
    layer.attention.self.key.weight = layer.attention.self.query.weight  # one tensor under two names
    assert signature(other) != signature(second)


@pytest.mark.slow
def test_a_stage_whose_layers_are_one_module_is_left_as_it_was() -> None:
    chain = encode("albert", "add", "input")
    (stage,) = chain.stages
    before = {name: tensor.clone() for name, tensor in stage.state_dict().items()}
    first = content(_source(chain, torch.float32, 0, fused=False))
    for name, tensor in stage.state_dict().items():
        assert type(tensor) is torch.Tensor
        assert torch.equal(tensor, before[name]), name
    assert content(_source(chain, torch.float32, 0, fused=False)) == first


def test_a_number_that_is_no_weight_is_part_of_the_structure() -> None:
    class Scaled(nn.Module):
        def __init__(self, inner: nn.Module, scale: float) -> None:
            super().__init__()
            self.inner, self.scale = inner, torch.tensor(scale)

        def forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            out: torch.Tensor = self.inner(hidden, *args, **kwargs)
            return out * self.scale

    first, *_ = encode("roberta", "add").stages
    found = set()
    for scale in (1.0, 1.0, 0.5):
        stage = with_weights(first, cast_weights(first, torch.float32))
        stage.layers.stack[0] = Scaled(stage.layers.stack[0], scale)
        found.add(signature(stage))
    assert None not in found
    assert len(found) == 2


def test_a_trace_is_found_again_by_structure_and_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BBT_FAST_CACHE", str(tmp_path))
    first, second, *_ = encode("roberta", "add").stages
    traced: list[torch.dtype] = []

    def trace(stage: Any, samples: tuple[torch.Tensor, ...]) -> ir.Model:
        traced.append(samples[0].dtype)
        return ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 23}), ir_version=11)

    def graph(stage: Any, dtype: torch.dtype = torch.float32) -> int:
        """Ask for a stage's graph; return how many were traced so far."""
        mask = torch.ones(6, 1, 20, 20, dtype=torch.bool)
        traces._graph(stage, (torch.zeros(2, 6, 20, TINY["hidden_size"], dtype=dtype), mask), dtype, trace)
        return len(traced)

    assert [graph(first), graph(first), graph(second)] == [1, 1, 1]
    assert [graph(first, torch.float16), graph(second, torch.float16)] == [2, 2]
    version = traces.version
    for number, package in enumerate(("bbt-fast", "torch", "transformers", "onnx", "onnxscript", "onnx-ir"), 3):
        monkeypatch.setattr(traces, "version", lambda name, other=package: "0" if name == other else version(name))
        assert [graph(first), graph(second)] == [number, number], package


def test_a_stage_that_reads_its_numbers_shares_with_no_other() -> None:
    class Reading(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner
            self.weight = nn.Parameter(torch.tensor(2.0))

        def forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            out: torch.Tensor = self.inner(hidden, *args, **kwargs)
            return out * self.weight.item()

    first, *_ = encode("roberta", "add").stages
    stage = with_weights(first, cast_weights(first, torch.float32))
    stage.layers.stack[0] = Reading(stage.layers.stack[0])
    assert signature(stage) is None


def test_casting_leaves_the_stage_as_it_is_and_copies_no_weight_that_fits() -> None:
    first, *_ = encode("roberta", "add").stages
    weights = cast_weights(first, torch.float32)
    same = with_weights(first, weights)
    for (name, mine), theirs in zip(first.named_parameters(), same.parameters(), strict=True):
        assert mine.data_ptr() == theirs.data_ptr(), name
    half = with_weights(first, cast_weights(first, torch.float16))
    assert {one.dtype for one in half.parameters()} == {torch.float16}
    assert {one.dtype for one in first.parameters()} == {torch.float32}
