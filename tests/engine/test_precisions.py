"""fp8 products and fp16 sums: refused where the card or the gate says so, and never anybody else's setting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from bbt_fast.benchmarks.harness.shapes import make_model
from bbt_fast.engine import Engine, Examples, load_engine, ort
from bbt_fast.engine.loading import prospects
from bbt_fast.engine.pytorch import FastRunner, TorchEngine
from bbt_fast.export import fp8
from bbt_fast.export.errors import DeviceError, NumericsError, ParityError


@pytest.fixture(scope="module")
def toy() -> PreTrainedModel:
    """A tiny RoBERTa whose losses depend on its prompt as a trained one's do: fp8 can tell them apart."""
    return make_model("toy")


MakeExamples = Callable[..., Examples]
MakePrompts = Callable[..., Tensor]
CUDA = torch.device("cuda", 0)


def load(model: PreTrainedModel, precision: str, cuts: Any = "layers", **options: Any) -> Engine:
    return load_engine("torch", model, n_prompt_tokens=5, cuts=cuts, precision=precision, device="cpu", **options)


@pytest.mark.parametrize("include", [(), ("packing", "fusion")])
def test_fp8_ranks_candidates_as_fp32_does_and_rounds_more_than_fp16(
    include: tuple[str, ...], toy: PreTrainedModel, make_examples: MakeExamples, make_prompts: MakePrompts
) -> None:
    examples, prompts = make_examples(toy), make_prompts(toy, 12)
    exact, half, eighth = (
        load(toy, precision, include=include).open(examples).evaluate(prompts, 1)
        for precision in ("fp32", "fp16", "fp8")
    )
    assert 10 * float((half - exact).abs().mean()) < float((eighth - exact).abs().mean())
    assert float(torch.corrcoef(torch.stack([exact.flatten(), eighth.flatten()]))[0, 1]) > 0.95


def test_only_the_layers_products_are_in_fp8(toy: PreTrainedModel) -> None:
    engine = load(toy, "fp8")
    stages = next(iter(engine._runners.values()))._stages  # type: ignore[attr-defined]
    names = [name for stage in stages for name, part in stage.named_modules() if isinstance(part, fp8.Fp8Linear)]
    assert len(names) == 6 * toy.config.num_hidden_layers
    assert all(name.startswith("layers.stack.") for name in names)
    assert not [part for part in toy.modules() if isinstance(part, fp8.Fp8Linear)]


def test_nan_in_a_prompt_is_an_error_in_fp8_too(toy: PreTrainedModel, make_examples: MakeExamples) -> None:
    session = load(toy, "fp8", "input").open(make_examples(toy))
    with pytest.raises(NumericsError, match="torch in fp8 returned NaN or infinity"):
        session.evaluate(torch.full((1, 5, toy.config.hidden_size), float("nan")))


def test_the_gate_refuses_fp8_with_wrong_scales(toy: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    right = fp8.quantized

    def wrong(rows: Tensor) -> tuple[Tensor, Tensor]:
        quantized, scale = right(rows)
        return quantized, scale.mean().expand_as(scale)

    monkeypatch.setattr(fp8, "quantized", wrong)
    with pytest.raises(ParityError, match="torch in fp8 on cpu disagrees with PyTorch fp32"):
        load(toy, "fp8")


@pytest.mark.parametrize(("capability", "refused"), [((8, 0), True), ((8, 6), True), ((8, 9), False), ((9, 0), False)])
def test_fp8_needs_a_card_that_has_it(
    capability: tuple[int, int], refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "RTX 3090")
    fault = TorchEngine.precision_fault("fp8", CUDA)
    assert (fault is not None) == refused
    assert TorchEngine.precision_fault("fp16", CUDA) is None
    if fault:
        assert fault == "fp8 products need compute capability 8.9 or later, and RTX 3090 has less"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_auto_takes_neither_by_itself(device: str) -> None:
    from bbt_fast.engine.automatic import FASTEST

    assert not {"fp8", "fp16-fast"} & {choice.precision for choice in FASTEST[device]}
    assert prospects("fp8", "cpu") == []


def test_fp16_sums_are_set_for_our_own_products_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = torch.backends.cuda.matmul
    seen: list[bool] = []

    class Failing:
        names = ()

        def join(self, *_: Tensor) -> tuple[Tensor, ...]:
            seen.append(settings.allow_fp16_accumulation)
            raise RuntimeError("out of everything")

    Failing.join.names = ()  # type: ignore[attr-defined]
    runner = FastRunner((Failing(),))  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="out of everything"):
        runner(0, torch.zeros(1), torch.zeros(1), {})
    assert seen == [True]
    assert not settings.allow_fp16_accumulation


def test_onnx_runtime_is_not_asked_for_both_sums_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "_sums", [])
    monkeypatch.delenv(ort.GEMM_OPTIONS, raising=False)
    ort._settle_sums("1")
    ort._settle_sums("1")
    assert ort.os.environ[ort.GEMM_OPTIONS] == "1"
    with pytest.raises(
        DeviceError, match=r"already has sessions with ORT_CUDA_GEMM_OPTIONS=1\. Use fp16 and fp16-fast in"
    ):
        ort._settle_sums("0")
    monkeypatch.delenv(ort.GEMM_OPTIONS)


def test_parity_figures_of_fp16_sums_are_kept_apart() -> None:
    cpu = torch.device("cpu")
    assert ort._runtime(cpu, "fp16-fast") == f"{ort._runtime(cpu, 'fp16')}-fast"
