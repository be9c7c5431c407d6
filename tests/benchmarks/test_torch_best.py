"""The strong PyTorch baseline: every way it can run is right, and it takes the fastest."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from bbt_fast.benchmarks.harness.contenders.layouts import layouts
from bbt_fast.benchmarks.harness.contenders.original import Reference
from bbt_fast.benchmarks.harness.contenders.torch_best import TorchBest
from bbt_fast.benchmarks.harness.shapes import make_model
from bbt_fast.benchmarks.harness.workload import Algorithm, Workload


def test_a_batch_that_memory_does_not_hold_is_not_taken(toy: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = TorchBest._forward

    def short_of_memory(self: TorchBest, prompts: Tensor, layer: int) -> Tensor:
        if len(prompts) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, prompts, layer)

    monkeypatch.setattr(TorchBest, "_forward", short_of_memory)
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    best = TorchBest(toy, make_model("toy"), "fp32")
    assert best.batch == 1
    prompts = torch.zeros(toy.population, toy.n_prompt_tokens, best.model.config.hidden_size)
    assert best.answer(prompts, 0).shape == (4, 4, 2)


def test_what_cannot_be_compiled_runs_as_it_is(
    toy: Workload, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: Any) -> Tensor:
        raise RuntimeError("no backend")

    monkeypatch.setattr(torch, "compile", lambda module, **_: fails)
    best = TorchBest(toy, make_model("toy"), "fp32")
    assert best.mode == "not compiled"
    assert "torch-best-fp32: mode default fails (RuntimeError: no backend)" in capsys.readouterr().err


def test_the_fastest_way_of_the_strong_baseline_is_taken(toy: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = {"in a row": 2.0, "padded": 3.0, "4 lengths": 4.0, "default": 1.0}
    monkeypatch.setattr(TorchBest, "_seconds", lambda self, _: speeds[self.run.name])

    class Compiled:
        def __init__(self, module: Any, mode: str, **_: Any) -> None:
            self.module, self.name = module, mode

        def __call__(self, prompts: Tensor) -> Any:
            return self.module(prompts)

    monkeypatch.setattr(torch, "compile", Compiled)
    best = TorchBest(toy, make_model("toy"), "fp32")
    assert best.layout.name == "in a row"
    best.answer(torch.zeros(toy.population, toy.n_prompt_tokens, best.model.config.hidden_size), 0)
    assert best.mode == "default"
    assert "in a row, 4 candidates at once, default" in best.attention_kernel()


@pytest.mark.parametrize("model", ["toy", "toy-gpt2"])
@pytest.mark.parametrize("algorithm", ["bbt", "bbtv2"])
def test_every_layout_of_the_strong_baseline_gives_the_same_answers(
    model: str, algorithm: Algorithm, toy: Workload
) -> None:
    workload = replace(toy, model=model, algorithm=algorithm, n_examples=6)
    stock, deep = make_model(model), algorithm == "bbtv2"
    shape = (3, 2 if deep else 1, toy.n_prompt_tokens, stock.config.hidden_size)
    prompts = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = {}
    for layout in layouts(stock, deep, workload.examples(stock), toy.n_prompt_tokens):
        stock.set_attn_implementation(layout.attention)
        with torch.inference_mode():
            found[layout.name] = layout(prompts)
    assert set(found) == {"padded", "4 lengths", *(["in a row"] if model == "toy" else [])}
    for answers in found.values():
        assert float((answers - found["padded"]).abs().max()) < 2e-5
    reference = Reference(workload, make_model(model))
    for layer in range(1, shape[1]):
        reference.commit(prompts[0, layer], layer)
    torch.testing.assert_close(found["padded"][:1], reference.answer(prompts[:1, 0], 0), atol=2e-5, rtol=0)
