"""``--engine auto``: the fastest engine that is installed and faithful, and the reasons said."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
from transformers import PreTrainedModel

from bbt_fast.engine import ENGINES, automatic, cpu, load_engine, loading
from bbt_fast.engine.base import Engine
from bbt_fast.engine.loading import prospects
from bbt_fast.export.errors import ArtifactError, ParityError, UsageError

pytest.importorskip("openvino")
needs_bf16 = pytest.mark.skipif(not cpu.has_bf16(), reason="needs a CPU with bf16 instructions, not hidden from oneDNN")


@pytest.fixture
def fast_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that multiplies bf16 faster than fp32."""
    monkeypatch.setattr(cpu, "bf16_speedup", lambda: 1.9)
    monkeypatch.setattr("bbt_fast.engine.openvino.has_bf16", lambda: True)


@pytest.fixture
def slow_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that has bf16 instructions, but multiplies fp32 faster."""
    monkeypatch.setattr(cpu, "bf16_speedup", lambda: 0.54)
    monkeypatch.setattr("bbt_fast.engine.openvino.has_bf16", lambda: True)


@needs_bf16
@pytest.mark.usefixtures("fast_bf16")
def test_auto_takes_openvino_in_bf16_where_that_is_faster(
    roberta: PreTrainedModel, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "bbt_fast"):
        engine = load_engine("auto", roberta, n_prompt_tokens=5, device="cpu")
    assert (engine.name, engine.precision) == ("openvino", "bf16")
    assert "engine auto is openvino in bf16: the fastest here that passes the parity gate" in caplog.messages


@pytest.mark.usefixtures("slow_bf16")
def test_auto_leaves_bf16_alone_where_it_is_no_faster(
    roberta: PreTrainedModel, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "bbt_fast"):
        engine = load_engine("auto", roberta, n_prompt_tokens=5, device="cpu")
    assert (engine.name, engine.precision) == ("openvino", "fp32")
    said = "engine auto is not openvino in bf16: this CPU multiplies matrices in bf16 at 0.5 times its rate in fp32, "
    assert said + "so it gains nothing" in caplog.messages


@pytest.mark.usefixtures("slow_bf16")
def test_bf16_that_is_asked_for_where_it_is_slow_is_said_to_be(
    roberta: PreTrainedModel, caplog: pytest.LogCaptureFixture
) -> None:
    load_engine("torch", roberta, n_prompt_tokens=5, device="cpu", precision="bf16")
    assert any("torch in bf16: this CPU multiplies matrices in bf16 at 0.5 times" in m for m in caplog.messages)


@pytest.mark.parametrize(
    ("rates", "precision"), [pytest.param("fast_bf16", "bf16", marks=needs_bf16), ("slow_bf16", "fp32")]
)
def test_the_precision_auto_of_an_engine_is_its_first_that_pays(
    rates: str, precision: str, roberta: PreTrainedModel, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue(rates)
    assert load_engine("openvino", roberta, n_prompt_tokens=5, device="cpu").precision == precision


@pytest.mark.usefixtures("fast_bf16")
def test_auto_goes_on_to_the_next_engine_when_the_gate_refuses_one(
    roberta: PreTrainedModel, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = Engine.check_parity

    def strict(engine: Engine) -> None:
        if engine.precision == "bf16":
            raise ParityError("the losses are not those of PyTorch")
        check(engine)

    monkeypatch.setattr(Engine, "check_parity", strict)
    with caplog.at_level(logging.INFO, "bbt_fast"):
        engine = load_engine("auto", roberta, n_prompt_tokens=5, device="cpu")
    assert (engine.name, engine.precision) == ("openvino", "fp32")
    assert "engine auto is not openvino in bf16: the losses are not those of PyTorch" in caplog.messages
    with pytest.raises(ParityError, match="the losses are not those of PyTorch"):
        load_engine("auto", roberta, n_prompt_tokens=5, device="cpu", precision="bf16")


@pytest.mark.usefixtures("slow_bf16")
@pytest.mark.parametrize("error", [ArtifactError("its graph cannot be loaded"), RuntimeError("no export")])
def test_auto_goes_on_to_the_next_engine_when_one_cannot_be_loaded(
    error: Exception, roberta: PreTrainedModel, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("bbt_fast.engine.openvino.onnx_files", fail)
    with caplog.at_level(logging.INFO, "bbt_fast"):
        engine = load_engine("auto", roberta, n_prompt_tokens=5, device="cpu")
    assert engine.name != "openvino"
    assert f"engine auto is not openvino in fp32: {error}" in caplog.messages
    with pytest.raises(type(error), match=str(error)):
        load_engine("openvino", roberta, n_prompt_tokens=5, device="cpu")


def test_an_engine_that_is_not_installed_is_passed_over_with_its_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "openvino", replace(ENGINES["openvino"], requires=("a_package_nobody_has",)))
    faults = {str(choice): fault for choice, fault in prospects("fp32", "cpu")}
    assert "pip install 'bbt-fast[openvino]'" in str(faults["openvino in fp32"])
    assert faults["torch in fp32"] is None


def test_auto_keeps_to_the_precision_that_is_asked_for() -> None:
    assert {choice.precision for choice, _ in prospects("fp32", "cpu")} == {"fp32"}
    with pytest.raises(UsageError, match="precision is 'fp99'"):
        prospects("fp99", "cpu")


@pytest.mark.parametrize("device_type", automatic.FASTEST)
def test_every_choice_is_one_that_its_engine_can_do(device_type: str) -> None:
    for choice in automatic.FASTEST[device_type]:
        if choice.engine != "trt":
            assert choice.precision in loading.engine_class(choice.engine).precisions[device_type]


def test_bad_names_are_refused_before_the_model_is_read() -> None:
    with pytest.raises(UsageError, match=r"there is no engine 'onnx'\. Choose one of: auto, torch, ort"):
        load_engine("onnx", "no/such/model")
    with pytest.raises(UsageError, match="precision is 'fp99'"):
        load_engine("auto", "no/such/model", precision="fp99")
