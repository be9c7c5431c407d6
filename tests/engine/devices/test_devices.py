"""Models and texts on another device than the CPU: nothing is left behind."""

from __future__ import annotations

import copy
import mmap
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from bbt_fast.engine import Examples, Savings, load_engine
from bbt_fast.engine.loading import _device
from bbt_fast.engine.onnx_files import onnx_files
from bbt_fast.engine.ort import EXACT
from bbt_fast.engine.pytorch import TorchEngine
from bbt_fast.export.errors import DeviceError
from bbt_fast.export.model import Cuts, StagedModel
from bbt_fast.export.prompts import Mode

N_PROMPT_TOKENS = 5
META = torch.device("meta")

Place = Callable[[], AbstractContextManager[None]]


def test_the_second_device_sees_what_is_mixed(elsewhere: Place) -> None:
    with elsewhere():
        here, there = torch.ones(3), torch.ones(3, device=META)
        assert (2 * there).cpu().tolist() == [2, 2, 2]
        with pytest.raises(RuntimeError, match="mixes two devices"):
            here + there


@pytest.mark.parametrize("kind", ["roberta", "gpt2"])
@pytest.mark.parametrize("mode", ["add", "cat"])
@pytest.mark.parametrize(("cuts", "precision"), [("input", "bf16"), ("layers", "fp32"), ("layers", "bf16")])
@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_an_engine_answers_there_as_on_the_cpu(
    kind: str,
    mode: Mode,
    cuts: Cuts,
    precision: str,
    layout: str,
    elsewhere: Place,
    monkeypatch: pytest.MonkeyPatch,
    make_model: Callable[..., PreTrainedModel],
    make_examples: Callable[..., Examples],
    make_prompts: Callable[..., Tensor],
) -> None:
    kernels = {"cpu": "padded", "meta": "padded"} if layout == "packed" else {}
    monkeypatch.setattr(TorchEngine, "packing_kernels", kernels)
    model = make_model(kind, num_hidden_layers=2)
    texts, prompts = make_examples(model, mode, n_examples=4), make_prompts(model)
    last = 1 if cuts == "layers" else 0

    def answer(engine: TorchEngine) -> list[Tensor]:
        engine.check_parity()
        session = engine.open(texts)
        first = session.evaluate(prompts, 0)
        session.commit(prompts[0], 0)
        return [tensor.cpu() for tensor in (first, session.evaluate(prompts, last), session.hidden_states(last))]

    expected = answer(
        TorchEngine(StagedModel(model, mode, N_PROMPT_TOKENS, cuts), precision, torch.device("cpu"), Savings())
    )
    with elsewhere():
        moved = copy.deepcopy(model).to(META)
        found = answer(TorchEngine(StagedModel(moved, mode, N_PROMPT_TOKENS, cuts), precision, META, Savings()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5 if precision == "fp32" else 0.1, rtol=0)


@pytest.mark.slow
def test_graphs_are_exported_from_a_model_there(
    elsewhere: Place, make_model: Callable[..., PreTrainedModel], make_examples: Callable[..., Examples]
) -> None:
    model = make_model("roberta", seed=7)  # whose graphs no other test has left in the cache
    texts = make_examples(model)
    with elsewhere():
        staged = StagedModel(copy.deepcopy(model).to(META), "add", N_PROMPT_TOKENS, "input")
        encoded = staged.encode(texts)
        assert {tensor.device for tensor in (encoded.hidden, *encoded.tensors.values())} == {META}
    files = onnx_files(staged, encoded, torch.float32)
    options = {"n_prompt_tokens": N_PROMPT_TOKENS, "precision": "fp32", "device": "cpu", "ablate": ["buckets"]}
    engine = load_engine("ort", model, **options)
    engine.open(texts)
    assert engine.artifacts == files.paths  # the graph made there, which passes the gate


def test_what_is_asked_of_the_cuda_provider_stands_in_its_library() -> None:
    found = list((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime_providers_cuda.so"))
    if not found:
        pytest.skip("this build of ONNX Runtime has no CUDA provider")
    with found[0].open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as library:
        for name in (*EXACT, "ONNX Attention: using Flash Attention"):
            assert library.find(name.encode()) >= 0, name


def test_a_cuda_device_is_named_as_its_tensors_name_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    for asked, meant in (("auto", "cuda:1"), ("cuda", "cuda:1"), ("cuda:0", "cuda:0")):
        assert _device("torch", asked) == torch.device(meant)
    with pytest.raises(DeviceError, match=r"--device cuda:2 cannot be used: PyTorch sees 2 CUDA devices, cuda:0 the"):
        _device("torch", "cuda:2")
