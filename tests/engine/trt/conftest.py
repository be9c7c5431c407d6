"""Fixtures of the TensorRT engine on the fake TensorRT: the engine, texts, prompts and the reference."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from torch import Tensor
from transformers import PreTrainedModel

from bbt_fast.engine import Examples, Session, load_engine
from bbt_fast.engine.tensorrt import TensorRtEngine

N_PROMPT_TOKENS = 5


@pytest.fixture
def load(fake: ModuleType, roberta: PreTrainedModel) -> Callable[..., TensorRtEngine]:
    """A function that loads the engine on the shared tiny model."""

    def make(cuts: str = "input", precision: str = "fp32", **options: object) -> TensorRtEngine:
        common = {"n_prompt_tokens": N_PROMPT_TOKENS, "device": "cpu", "cuts": cuts, "precision": precision}
        engine = load_engine("trt", roberta, **common | options)
        assert isinstance(engine, TensorRtEngine)
        return engine

    return make


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[TensorRtEngine], None]:
    """A function that gives the test a cache of its own, which holds an engine's graphs so far but no plan.

    For tests that leave damage, or a note, which parallel workers would meet in the shared one.
    """

    def change(engine: TensorRtEngine) -> None:
        for runner in engine._runners.values():
            graphs = runner.files.paths[0].parent
            shutil.copytree(graphs, tmp_path / graphs.name, ignore=shutil.ignore_patterns(".*"))
        monkeypatch.setenv("BBT_FAST_CACHE", str(tmp_path))

    return change


@pytest.fixture
def examples(roberta: PreTrainedModel, make_examples: Callable[..., Examples]) -> Examples:
    """Texts of one length, so that there is one bucket."""
    return make_examples(roberta, "add", N_PROMPT_TOKENS, n_examples=4, min_length=9, max_length=9)


@pytest.fixture
def prompts(roberta: PreTrainedModel, make_prompts: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function that draws prompts."""

    def draw(candidates: int, seed: int = 0) -> Tensor:
        return make_prompts(roberta, candidates, N_PROMPT_TOKENS, seed=seed)

    return draw


@pytest.fixture
def reference(roberta: PreTrainedModel) -> Callable[..., Session]:
    """A function that opens texts on PyTorch in fp32."""

    def open_on_torch(examples: Examples, cuts: str = "input", mode: str = "add") -> Session:
        options = {"mode": mode, "n_prompt_tokens": N_PROMPT_TOKENS, "cuts": cuts, "precision": "fp32", "device": "cpu"}
        return load_engine("torch", roberta, **options).open(examples)

    return open_on_torch
