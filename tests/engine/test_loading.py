"""What load_engine() refuses, and how it says so."""

from __future__ import annotations

import re
from pathlib import Path

import onnxruntime
import pytest
import torch
from transformers import PreTrainedModel, ViTConfig

from bbt_fast.engine import ENGINES, Savings, load_engine, loading
from bbt_fast.engine.loading import Row
from bbt_fast.export.errors import DeviceError, MissingExtraError, UsageError


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("tensorflow", {}, "there is no engine 'tensorflow'. Choose one of: .*torch, ort"),
        ("torch", {"mode": "sub"}, "mode is 'sub', but it must be one of add, cat"),
        ("torch", {"cuts": "middle"}, "cuts is 'middle', but it must be one of input, layers"),
        ("torch", {"n_prompt_tokens": 0}, "n_prompt_tokens is 0, but a prompt has at least one token"),
        ("torch", {"precision": "fp12"}, "precision is 'fp12', but it must be auto or one of fp32"),
        (
            "ort",
            {"precision": "bf16", "device": "cpu"},
            "'ort' cannot compute in bf16 on cpu. Give one of these with --precision: fp32, fp16",
        ),
        ("torch", {"device": "abacus"}, "device is 'abacus', but it must be auto, cpu, cuda or cuda:N"),
        ("torch", {"device": "meta"}, "runs on cpu and cuda, not on 'meta'"),
        ("torch", {"ablate": ["prayer"]}, "there is no saving 'prayer'. Choose from: reuse, buckets"),
    ],
)
def test_an_unknown_name_is_refused_with_those_there_are(
    name: str, options: dict[str, object], message: str, roberta: PreTrainedModel
) -> None:
    with pytest.raises(UsageError, match=message):
        load_engine(name, roberta, **options)


def test_an_unknown_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"no model .*nothing-here.*neither a folder with a config.json nor a hub model"
    ):
        load_engine("torch", str(tmp_path / "nothing-here"))


def test_an_architecture_outside_the_table_is_refused_with_the_page_that_helps(tmp_path: Path) -> None:
    ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(
        UsageError, match=r"model type 'vit' is not supported; the supported types are: .*roberta.*docs/adding-a-model"
    ):
        load_engine("torch", tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("name", ["torch", "ort"])
def test_cuda_without_a_device_is_an_error_and_not_a_silent_cpu_run(name: str, roberta: PreTrainedModel) -> None:
    with pytest.raises(DeviceError, match="--device cuda cannot be used: PyTorch sees no CUDA device"):
        load_engine(name, roberta, device="cuda")


def test_ort_without_its_cuda_provider_is_an_error_that_names_the_packages(
    roberta: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(DeviceError, match="has no CUDA provider; install exactly one package"):
        load_engine("ort", roberta, device="cuda")


def test_auto_leaves_a_gpu_that_an_engine_cannot_use_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    assert loading._device("ort", "auto") == torch.device("cpu")
    assert "engine ort runs on the CPU, although PyTorch sees a GPU: " in caplog.text


def test_an_engine_for_cpus_only_runs_on_the_cpu_beside_a_gpu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert loading._device("openvino", "auto") == torch.device("cpu")
    assert not caplog.messages
    with pytest.raises(UsageError, match="engine 'openvino' runs on cpu, not on 'cuda'"):
        loading._device("openvino", "cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_cuda_provider_that_does_not_load_names_the_missing_library() -> None:
    ort = pytest.importorskip("bbt_fast.engine.ort")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this build of ONNX Runtime has no CUDA provider")
    assert re.match(r"lib\w+\.so\S*: cannot open shared object file", ort.missing_library())


def test_an_engine_whose_package_is_missing_says_how_to_install_it(
    roberta: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENGINES, "absent", Row("absent", "Absent", ("no_such_package",), "pip install no-such-package"))
    with pytest.raises(MissingExtraError, match=r"needs no_such_package, .* `pip install no-such-package`"):
        load_engine("absent", roberta)


def test_savings_can_be_switched_off_one_by_one() -> None:
    assert Savings.on("cuda") == Savings()
    assert Savings.on("cuda", ["reuse", "buckets"]) == Savings(reuse=False, buckets=False)
    assert Savings.on("cpu") == Savings(packing=False, fusion=False, graph=False)
    assert Savings.on("cpu", including=["packing"]) == Savings(fusion=False, graph=False)


def test_the_rest_of_a_process_makes_its_own_onnx_runtime_sessions(roberta: PreTrainedModel) -> None:
    engine = load_engine("ort", roberta, n_prompt_tokens=5, precision="fp32", device="cpu")
    own = onnxruntime.InferenceSession(engine.artifacts[0], providers=["CPUExecutionProvider"])
    assert own.get_providers() == ["CPUExecutionProvider"]
