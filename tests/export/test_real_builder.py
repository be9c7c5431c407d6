"""TensorRT's own builder takes every graph: plans for an RTX 3090, built by TensorRT for RTX without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from bbt_fast.benchmarks import plans
from bbt_fast.benchmarks.plans import build, watched
from bbt_fast.engine.ahead import load_ahead
from bbt_fast.engine.plans import plan_fault
from bbt_fast.export import bindings, tensorrt, tensorrt_rtx
from bbt_fast.export.bindings import CLASSIC, RTX, Gpu, choose, gpu_named, package_for, preferred
from bbt_fast.export.cache import MANIFEST, read_json
from bbt_fast.export.errors import DeviceError, MissingExtraError, UsageError
from bbt_fast.export.loading import load_model
from bbt_fast.export.tensorrt import LENGTHS, PLAN
from bbt_fast.tuner.cli.main import main

needs_builder = pytest.mark.skipif(not RTX.installed, reason=f"needs {RTX.title}: {RTX.install}")
CARD = gpu_named("RTX 3090")
GOLDEN = ("roberta", "bert", "electra", "bart", "t5", "gpt2")
FAST = {("roberta", "add", "input"), ("roberta", "cat", "layers")}
CASES = [
    pytest.param(*case, id="-".join(case), marks=() if case in FAST else pytest.mark.slow)
    for case in (
        *product(("roberta",), ("add", "cat"), ("input", "layers")),
        *((family, "cat", "layers") for family in GOLDEN[1:]),
        *((family, "add", "input") for family in GOLDEN[1:] if family != "t5"),
    )
]
"""Every combination for one family; for the others each mode and each cut once, but for T5, which takes longest."""


@pytest.fixture(scope="session")
def golden_file(shared_file: Callable[..., Path]) -> Callable[..., Path]:
    """A function that finds a model of the original's size, or skips: a smaller head has no fused kernel."""
    return partial(shared_file, "golden")


@needs_builder
@pytest.mark.parametrize(("family", "mode", "cuts"), CASES)
def test_every_golden_family_becomes_plans_with_fused_attention(
    family: str, mode: Any, cuts: Any, golden_file: Callable[..., Path]
) -> None:
    engine, networks = build(load_model(golden_file(family)), CARD, mode, cuts, "fp16", fused=True)
    assert len(engine.artifacts) == len(networks) == engine.staged.n_stages
    assert plans.whole(engine, networks)
    (stages,) = engine._runners
    for stage, network in zip(stages, networks, strict=True):
        assert {"hidden", "prompt"} <= network.inputs
        assert network.outputs == ("logits" if stage.answers else "next_hidden",)
        assert (network.attends_by == "lengths") == (LENGTHS in network.inputs)
    assert all(n.attends_by == "lengths" for n in networks) == (family in ("roberta", "bert", "electra"))


@needs_builder
@pytest.mark.slow
def test_a_head_size_without_a_fused_kernel_is_told_from_one_that_has_it(
    roberta: PreTrainedModel, golden_file: Callable[..., Path]
) -> None:
    assert plans.row(roberta, CARD, "add", "input", "fp16")["status"] == "in parts"
    fused = plans.row(load_model(golden_file("roberta")), CARD, "add", "input", "fp16")
    assert fused["status"] == "fused"
    assert fused["by"] == ["lengths"]


@needs_builder
def test_the_table_of_families_comes_from_builds(
    golden_file: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "plans.json"
    monkeypatch.setattr(plans, "tiny_model", lambda *_, **__: load_model(golden_file("roberta")))
    plans.main(["--families=roberta", "--precisions=fp16", "--modes=add", "--cuts=input", f"--output={path}"])
    assert "| `roberta` | fused | lengths |" in capsys.readouterr().out
    assert "| `roberta` | fused | lengths |" in path.with_suffix(".md").read_text()


@needs_builder
def test_what_a_run_asks_for_is_built_for_all_cards_of_a_kind(
    golden_file: Callable[..., Path], make_examples: Callable[..., Any]
) -> None:
    model = load_model(golden_file("roberta"))
    options: dict[str, Any] = {"mode": "add", "n_prompt_tokens": 5, "cuts": "input"}
    texts = make_examples(model, "add", 5, n_examples=4)
    found = []
    for name in ("sm86", "RTX 3090", "3080"):
        engine = load_ahead(model, gpu_named(name), **options)
        engine.prepare(texts, 6)
        found.append(engine.artifacts)
    assert found[0] == found[1] == found[2]
    assert len(found[0]) > engine.staged.n_stages
    key = read_json(found[0][0].with_name(MANIFEST))["key"]
    assert key["compute capability"] == [8, 6]
    assert key["versions"]["tensorrt"].startswith("rtx-1.")
    assert key["profile"]["hidden"][0][-1] == model.config.hidden_size
    assert load_ahead(model, gpu_named("4090"), **options).artifacts[0] != found[0][0]


@needs_builder
@pytest.mark.parametrize("target", sorted(RTX.capabilities or ()))
def test_packed_attention_has_no_kernel_yet(target: tuple[int, int]) -> None:
    """When this fails, texts in a row can be offered on trt, as docs/tensorrt.md says."""
    trt = pytest.importorskip("tensorrt_rtx_bindings")
    choose(target)
    builder = tensorrt.start(trt.Builder)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    row = [network.add_input(name, trt.float16, trt.Dims((700, 12, 64))) for name in ("query", "key", "value")]
    bounds = network.add_input("bounds", trt.DataType.INT32, trt.Dims((33,)))
    attention = network.add_attention(*row, trt.AttentionNormalizationOp.SOFTMAX, False)
    attention.query_form = attention.key_value_form = trt.AttentionIOForm.PACKED_NHD
    attention.query_lengths = attention.key_value_lengths = bounds
    network.mark_output(attention.get_output(0))
    config = builder.create_builder_config()
    tensorrt_rtx.set_target(config, target)
    assert builder.build_serialized_network(network, config) is None
    assert "no fused kernel is available" in tensorrt.tensorrt_errors()


@needs_builder
@pytest.mark.parametrize("damage", ["truncated", "foreign", "nothing"])  # the cache's checksum finds the first
def test_a_plan_of_another_kind_is_told_from_one_that_only_lacks_a_card(
    damage: str, golden_file: Callable[..., Path]
) -> None:
    with watched(fused=True):
        engine = load_ahead(load_model(golden_file("roberta")), CARD, mode="add", n_prompt_tokens=5, cuts="input")
        (plan,) = engine.artifacts
        content = plan.read_bytes()
        plan.write_bytes({"truncated": content[:-1000], "foreign": b"ftrt" + content[4:], "nothing": content}[damage])
        fault = plan_fault(plan)
    assert fault is not None
    assert ("malformed engine" in fault) == (damage == "foreign"), fault


@needs_builder
def test_a_plan_that_does_not_run_here_is_found_out_before_it_is_loaded(tmp_path: Path) -> None:
    choose(CARD.capability)
    (tmp_path / PLAN).write_bytes(b"no plan" * 99)
    assert plan_fault(tmp_path / PLAN) == "malformed engine"


def test_each_gpu_is_served_by_the_package_that_suits_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bindings, "find_spec", lambda module: True)
    assert package_for((8, 6)) is RTX
    assert package_for((9, 0)) is package_for((8, 0)) is CLASSIC
    monkeypatch.setattr(bindings, "find_spec", lambda module: module == "tensorrt" or None)
    assert package_for((8, 6)) is CLASSIC
    assert preferred((8, 6)) is RTX
    monkeypatch.setattr(bindings, "find_spec", lambda module: module == "tensorrt_rtx_bindings" or None)
    with pytest.raises(MissingExtraError, match=r" 9\.0 needs TensorRT, which is not installed: `pip install"):
        package_for((9, 0))
    with pytest.raises(DeviceError, match="does not support H100"):
        load_ahead(None, Gpu("H100", (9, 0)), mode="add", n_prompt_tokens=5, cuts="input")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["sm86", "SM_86", "8.6", "RTX 3090", "GeForce RTX 3090", "3090", "rtx3090"])
def test_a_gpu_has_many_names(name: str) -> None:
    assert gpu_named(name).capability == (8, 6)


def test_a_gpu_that_no_plan_can_be_built_for_is_refused_with_those_that_can() -> None:
    with pytest.raises(UsageError, match=r"--gpu is 'H100', but .* sm75, sm86, sm89, sm120, sm121, or for a card: RTX"):
        gpu_named("H100")


@pytest.mark.slow
@needs_builder
def test_the_command_builds_what_the_demo_needs_on_a_3090(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--engine", "trt", "--gpu", "sm86", "--popsize", "4", "--k_shot", "2"]) == 0
    said = capsys.readouterr().out
    assert "plans in fp16 for sm86, by TensorRT rtx-1." in said
    assert "for one candidate, and for 4 on the 4 examples of seed 42" in said


def test_other_engines_need_no_gpu_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--engine", "ort", "--gpu", "sm86"]) == 2
    assert "--gpu is for --engine trt, not for ort" in capsys.readouterr().err
