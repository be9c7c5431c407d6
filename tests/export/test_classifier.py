"""A classifier's graph answers as the engine does, also with what is computed inside it only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from bbt_fast.benchmarks.harness.tiny import VOCABULARY, tiny_model
from bbt_fast.engine import Engine, Examples, load_engine
from bbt_fast.export.classifier import INPUTS, Classifier, write_classifier
from bbt_fast.export.errors import UsageError
from bbt_fast.export.families import FAMILIES
from bbt_fast.export.words import LabelWords

N_PROMPT_TOKENS = 7
WORDS = (17, 8, 99)
MASK = VOCABULARY - 1


def tiny_engine(kind: str, **changes: int) -> Engine:
    model = tiny_model(next(family for family in FAMILIES if kind in family.model_types), kind)
    for name, value in changes.items():
        setattr(model.config, name, value)
    return load_engine("torch", model, n_prompt_tokens=N_PROMPT_TOKENS, precision="fp32", device="cpu")


def graph_of(engine: Engine, prompt: torch.Tensor) -> Classifier:
    words, mask = LabelWords(tuple((word,) for word in WORDS)), None if engine.family.kind == "decoder" else MASK
    return Classifier(engine.staged, prompt[None, None], [words], mask, torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "modernbert"])
def test_rotations_are_those_of_each_text(kind: str, tmp_path: Path) -> None:
    engine = tiny_engine(kind)
    generator = torch.Generator().manual_seed(0)
    prompt = 0.2 * torch.randn(N_PROMPT_TOKENS, engine.hidden_size, generator=generator)
    write_classifier(graph_of(engine, prompt), tmp_path / "model.onnx", N_PROMPT_TOKENS + 3, 64)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for lengths in ([40, 40, 40], [40, 21, 12], [15]):
        ids = torch.randint(5, MASK, (len(lengths), max(lengths)), generator=generator)
        mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
        position = torch.tensor(lengths) - (1 if engine.family.kind == "decoder" else 3)
        if engine.family.kind == "masked":
            ids[torch.arange(len(lengths)), position] = MASK
        expected = engine.open(Examples(ids, mask, position, torch.tensor(WORDS))).evaluate(prompt[None])[0]
        (found,) = session.run(None, dict(zip(INPUTS, (ids.numpy(), mask.numpy()), strict=True)))
        assert np.abs(found - expected.numpy()).max() < 1e-4


def test_a_decoder_that_sees_only_a_window_of_the_longest_texts_is_refused(tmp_path: Path) -> None:
    engine = tiny_engine("mistral", sliding_window=40)
    with pytest.raises(UsageError, match="its attention has a window of 40 tokens"):
        write_classifier(graph_of(engine, torch.zeros(7, engine.hidden_size)), tmp_path / "model.onnx", 12, 41)
