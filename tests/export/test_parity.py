"""The parity gate refuses what would mislead the search."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor
from transformers import PreTrainedModel

from bbt_fast.engine import Examples, load_engine
from bbt_fast.engine.ort import OrtEngine
from bbt_fast.export.errors import ArtifactError, ParityError
from bbt_fast.export.parity import Parity, compare, compare_losses, spearman
from bbt_fast.export.precision import PRECISIONS


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(16, 4, 3, generator=torch.Generator().manual_seed(0))


def test_equal_answers_pass_at_every_precision(logits: Tensor) -> None:
    parity = compare(logits, logits.clone())
    assert parity.max_logit_difference == 0
    assert math.isclose(parity.spearman, 1)
    for precision in PRECISIONS.values():
        parity.require(precision, "graph")


@pytest.mark.parametrize("precision", PRECISIONS.values(), ids=PRECISIONS)
def test_shuffled_ranks_are_refused_with_figures_and_a_way_out(precision: object, logits: Tensor) -> None:
    with pytest.raises(ParityError, match=r"graph disagrees with .* Spearman .* Try .*--engine torch"):
        compare(logits, logits.flip(0)).require(precision, "graph")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_answers_that_are_no_numbers_are_refused(value: float, logits: Tensor) -> None:
    wrong = logits.clone()
    wrong[3, 2, 1] = value
    with pytest.raises(ParityError, match=r"Spearman 0\.000"):
        compare(logits, wrong).require(PRECISIONS["bf16"], "graph")


def test_rounding_is_no_disagreement_where_losses_hardly_depend_on_the_prompt(logits: Tensor) -> None:
    """As in a model with its first, random weights."""
    near = 1e-6 * logits.double()
    compare(near, near + 3e-8 * logits.sign()).require(PRECISIONS["fp32"], "graph")
    with pytest.raises(ParityError, match=r"at most 1\.19e-07 for fp32, as losses spread by 7"):
        compare(near, near + 1e-6 * logits.sign()).require(PRECISIONS["fp32"], "graph")


def test_what_all_candidates_share_counts_as_error_but_not_as_rank() -> None:
    losses = torch.randn(16, 2, generator=torch.Generator().manual_seed(0))
    parity = compare_losses(losses, losses + torch.tensor([3.0, 5.0]), 0.0)
    assert math.isclose(parity.spearman, 1)
    assert math.isclose(parity.mean_loss_error, 4, rel_tol=1e-6)


def test_each_text_is_compared_not_their_mean() -> None:
    """Errors of opposite sign on two texts leave every candidate's mean loss right."""
    generator = torch.Generator().manual_seed(0)
    losses = torch.randn(16, 2, generator=generator)
    error = torch.randn(16, 1, generator=generator) * torch.tensor([1.0, -1.0])
    means = compare_losses(losses.mean(dim=1, keepdim=True), (losses + error).mean(dim=1, keepdim=True), 0.0)
    assert math.isclose(means.spearman, 1)
    assert compare_losses(losses, losses + error, 0.0).spearman < 0.95


def test_spearman_reads_ranks_only() -> None:
    a = torch.tensor([3.0, 1.0, 2.0, 5.0])
    assert math.isclose(spearman(a, a.exp()), 1)
    assert math.isclose(spearman(a, -a), -1)


@pytest.mark.parametrize("figures", [None, {}, [], {"spearman": 1.0}, {"spearman": "1"}])
def test_a_damaged_record_of_figures_counts_as_none(figures: object) -> None:
    assert Parity.from_dict(figures) is None


def test_figures_survive_their_record(logits: Tensor) -> None:
    parity = compare(logits, logits + 0.01 * logits.flip(1))
    assert Parity.from_dict(parity.as_dict()) == parity


@pytest.fixture
def graph(roberta: PreTrainedModel, tmp_path: Path) -> Path:
    """A graph of the test's own, which it may change."""
    source = load_engine("ort", roberta, n_prompt_tokens=5, device="cpu", precision="fp32").artifacts[0]
    path = tmp_path / "graph.onnx"
    path.write_bytes(source.read_bytes())
    return path


def test_a_users_graph_runs_in_the_place_of_the_caches(
    graph: Path, roberta: PreTrainedModel, make_examples: Callable[..., Examples], make_prompts: Callable[..., Tensor]
) -> None:
    examples, prompts = make_examples(roberta, "add", 5), make_prompts(roberta, 3, 5)
    options = {"n_prompt_tokens": 5, "device": "cpu", "precision": "fp32"}
    given = load_engine("ort", roberta, onnx_model_path=graph, **options)
    assert given.artifacts == (graph,)
    expected = load_engine("torch", roberta, **options).open(examples).evaluate(prompts)
    torch.testing.assert_close(given.open(examples).evaluate(prompts), expected, atol=2e-5, rtol=0)


@pytest.mark.slow
def test_a_users_graph_answers_texts_of_one_length_where_buckets_are_padded(
    roberta: PreTrainedModel,
    make_examples: Callable[..., Examples],
    make_prompts: Callable[..., Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(OrtEngine, "bucket_overhead", {"cpu": 512})
    options = {"n_prompt_tokens": 5, "device": "cpu", "precision": "fp32"}
    (path,) = load_engine("ort", roberta, **options).artifacts
    given = load_engine("ort", roberta, onnx_model_path=path, **options)
    examples, prompts = make_examples(roberta, "add", 5, min_length=7, max_length=7), make_prompts(roberta, 3, 5)
    expected = load_engine("torch", roberta, **options).open(examples).evaluate(prompts)
    torch.testing.assert_close(given.open(examples).evaluate(prompts), expected, atol=2e-5, rtol=0)


def test_a_graph_with_a_wrong_weight_is_refused(graph: Path, roberta: PreTrainedModel) -> None:
    model = onnx.load(graph)
    weight = next(i for i in model.graph.initializer if len(i.dims) == 2)
    weight.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(weight), weight.name))
    onnx.save(model, graph)
    with pytest.raises(ParityError, match="ort in fp32 on cpu disagrees with PyTorch fp32"):
        load_engine("ort", roberta, n_prompt_tokens=5, device="cpu", precision="fp32", onnx_model_path=graph)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "cat"}, "was built for mode add, but this run has cat"),
        ({"n_prompt_tokens": 6}, "was built for n_prompt_tokens 5, but this run has 6"),
        ({"precision": "fp16"}, "was built for precision float32, but this run has float16"),
        ({"cuts": "layers"}, "must be a folder with 3 files stage_00.onnx"),
    ],
)
def test_a_graph_made_for_something_else_is_refused(
    options: dict[str, object], message: str, graph: Path, roberta: PreTrainedModel
) -> None:
    usual = {"n_prompt_tokens": 5, "device": "cpu", "precision": "fp32"}
    with pytest.raises(ArtifactError, match=message):
        load_engine("ort", roberta, onnx_model_path=graph, **(usual | options))


@pytest.mark.parametrize("content", [b"", b"not a graph", b"\x08\x0a"])
def test_a_file_that_is_no_graph_of_ours_is_refused(content: bytes, tmp_path: Path, roberta: PreTrainedModel) -> None:
    path = tmp_path / "other.onnx"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"other\.onnx is not a graph that scripts/export_and_optimize\.py wrote"):
        load_engine("ort", roberta, n_prompt_tokens=5, device="cpu", onnx_model_path=path)
