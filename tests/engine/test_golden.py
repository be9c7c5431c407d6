"""The families beyond RoBERTa and BERT (test_contract.py) answer as the original implementation did.

Its answers are in ``shared``; without that folder those in tests/goldens take their place, which a stock model gave.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bbt_fast.engine import Engine, Examples, load_engine

N_PROMPT_TOKENS = 7
TOLERANCE = {"electra": 2e-4}

ENGINES = ["torch", pytest.param("ort", marks=pytest.mark.slow)]
"""RoBERTa and BERT pass theirs through ONNX Runtime in test_contract.py, among the fast tests. Above the input ONNX
Runtime answers as PyTorch does in test_families.py, and PyTorch as the original here."""


def load(engine: str, folder: Path, cuts: str) -> Engine:
    return load_engine(engine, folder, n_prompt_tokens=N_PROMPT_TOKENS, cuts=cuts, precision="fp32", device="cpu")


def golden_examples(family: str, data: dict[str, np.ndarray]) -> Examples:
    """The texts of the recorded answers, with the position at which each family answers."""
    ids, mask, position = (torch.from_numpy(data[k]).long() for k in ("input_ids", "attention_mask", "mask_pos"))
    decoder_ids = None
    if family == "gpt2":
        position = mask.sum(dim=1) - 1
    if family == "t5":
        decoder_ids, position = torch.from_numpy(data["decoder_input_ids"]).long(), torch.ones_like(position)
    return Examples(ids, mask, position, torch.arange(data["logits_add_0"].shape[-1]), decoder_ids)


def stacked(data: dict[str, np.ndarray], what: str) -> Tensor:
    """A recorded value of all three candidates, as one tensor."""
    return torch.stack([torch.from_numpy(data[f"{what}_add_{k}"]).float() for k in range(3)])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("family", ["electra", "bart", "t5", "gpt2"])
def test_a_prompt_at_the_input_answers_as_the_original_does(
    engine: str, family: str, golden_file: Callable[..., Path]
) -> None:
    data = np.load(golden_file(family, "shallow.npz"))
    loaded = load(engine, golden_file(family), "input")
    logits = loaded.open(golden_examples(family, data)).evaluate(stacked(data, "prompt"))
    torch.testing.assert_close(logits, stacked(data, "logits"), atol=TOLERANCE.get(family, 2e-5), rtol=0)


@pytest.mark.parametrize("family", ["bart", "t5", "gpt2"])
def test_a_prompt_at_any_layer_answers_as_the_original_does(family: str, golden_file: Callable[..., Path]) -> None:
    data = np.load(golden_file(family, "deep.npz"))
    loaded = load("torch", golden_file(family), "layers")
    session = loaded.open(golden_examples(family, data))
    for prompts, logits in zip(stacked(data, "prompt"), stacked(data, "logits"), strict=True):
        for layer in range(loaded.n_layers):
            session.commit(prompts[layer], layer)
        for layer in range(loaded.n_layers):
            found = session.evaluate(prompts[layer][None], layer)[0]
            torch.testing.assert_close(found, logits, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", ["shallow", "deep"])
@pytest.mark.parametrize("family", ["roberta", "bert", "electra", "bart", "t5", "gpt2"])
def test_the_goldens_of_this_repository_are_answered_too(family: str, name: str, repo_root: Path) -> None:
    folder = repo_root / "tests" / "goldens" / family
    if (family, name) == ("electra", "deep"):
        assert not (folder / "deep.npz").exists()  # the original implementation has none either
        return
    data = np.load(folder / f"{name}.npz")
    session = load("torch", folder, "input" if name == "shallow" else "layers").open(golden_examples(family, data))
    for prompt, logits in zip(stacked(data, "prompt"), stacked(data, "logits"), strict=True):
        if name == "shallow":
            found = session.evaluate(prompt[None])[0]
        else:
            for layer, its_prompt in enumerate(prompt):
                session.commit(its_prompt, layer)
            found = session.evaluate(prompt[0][None])[0]
        torch.testing.assert_close(found, logits, atol=2e-5, rtol=0)
