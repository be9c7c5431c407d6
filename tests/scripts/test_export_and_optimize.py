"""The export script writes graphs that ``--onnx_model_path`` takes, of encoders and of decoders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from bbt_fast.benchmarks.harness.tiny import tiny_model
from bbt_fast.engine import Examples, load_engine, savings
from bbt_fast.export.families import FAMILIES


@pytest.mark.parametrize(
    ("kind", "deep"),
    [
        ("roberta", False),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("roberta", True), ("gpt2", False), ("gpt2", True))),
    ],
)
def test_what_it_writes_answers_as_pytorch_does(
    kind: str,
    deep: bool,
    roberta: PreTrainedModel,
    make_examples: Callable[..., Examples],
    make_prompts: Callable[..., Tensor],
    export_script: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, n = roberta, 5
    if kind == "gpt2":  # as in tests/export/test_families.py, to share its traces
        model, n = tiny_model(next(family for family in FAMILIES if family.name == "GPT-2"), kind), 7
    assert export_script(model, f"--n_prompt_tokens={n}", *["--deep"] * deep) == 0
    (advice,) = [line for line in capsys.readouterr().out.splitlines() if "--onnx_model_path" in line]

    options = {"n_prompt_tokens": n, "cuts": "layers" if deep else "input", "precision": "fp32", "device": "cpu"}
    reference = load_engine("torch", "model", **options)
    given = load_engine("ort", "model", onnx_model_path=Path(advice.split()[-1]), **options)
    examples, prompts = make_examples(model, "add", n), make_prompts(model, 3, n)
    expected, found = (engine.open(examples).evaluate(prompts) for engine in (reference, given))
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)


def test_what_it_writes_is_of_padded_texts_where_engines_pack_them(
    roberta: PreTrainedModel, export_script: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(savings, "ON_CUDA", ("fusion", "graph"))  # packing is on, as on a GPU
    assert export_script(roberta, "--n_prompt_tokens=5") == 0
