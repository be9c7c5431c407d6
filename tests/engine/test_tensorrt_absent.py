"""What people without TensorRT, with a broken one, or without a GPU are told."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from bbt_fast.engine import load_engine
from bbt_fast.engine.loading import prospects
from bbt_fast.export.errors import DeviceError, MissingExtraError
from bbt_fast.tuner.cli import diagnosis
from bbt_fast.tuner.cli.main import main

pytestmark = pytest.mark.skipif(find_spec("tensorrt") is not None, reason="TensorRT is installed")
INSTALL = "pip install 'bbt-fast[trt-rtx]'` for GeForce and RTX cards, `pip install 'bbt-fast[trt]'"


@pytest.fixture(autouse=True)
def without_tensorrt_for_rtx(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide TensorRT for RTX, which may be installed."""
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", None)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A function that installs a package tensorrt with this source for a test."""

    def run(source: str) -> None:
        (tmp_path / "tensorrt.py").write_text(source, encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "tensorrt", raising=False)

    return run


def test_the_engine_says_what_to_install(roberta: PreTrainedModel) -> None:
    with pytest.raises(MissingExtraError, match=r"needs tensorrt_rtx_bindings or tensorrt, which is not installed"):
        load_engine("trt", roberta)


@pytest.mark.parametrize("command", [["tune"], ["export"]])
def test_the_command_line_says_it_in_one_message_and_writes_nothing(
    command: list[str],
    shared_file: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BBT_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("coloredlogs.install", lambda **_: None)
    model = str(shared_file("models", "minilm-mlm"))
    assert main([*command, "--engine", "trt", "--model_name", model, "--task_name", "demo"]) == 2
    captured = capsys.readouterr()
    assert captured.err == (
        f"bbt-fast: engine 'trt' needs tensorrt_rtx_bindings or tensorrt, which is not installed: `{INSTALL}`.\n"
    )
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


def test_the_doctor_says_what_to_install() -> None:
    assert INSTALL in diagnosis.diagnosis()["engines"]["trt"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_without_a_gpu_the_engine_says_so(
    device: str, install: Callable[[str], None], roberta: PreTrainedModel
) -> None:
    install("")
    with pytest.raises(DeviceError, match=r"cannot be used.*: PyTorch sees no CUDA device"):
        load_engine("trt", roberta, device=device)


def test_a_tensorrt_that_does_not_load_says_which_library_is_missing(
    install: Callable[[str], None], roberta: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("raise ImportError('libnvinfer.so.11: cannot open shared object file')")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 6))
    with pytest.raises(DeviceError, match=r"cannot be imported \(libnvinfer.so.11: cannot .*reinstall it: `pip"):
        load_engine("trt", roberta)
    choices = {str(choice): fault for choice, fault in prospects(device="cuda")}
    assert "libnvinfer.so.11" in str(choices["trt in fp16"])
