"""A toy engine: the calls of the seam over a tiny function, with no model behind it.

- toy_engine: function(cuts="input", n_layers=3) -> engine
- toy_parts: function(seed=0) -> run.Parts for it
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from bbt_fast.export.examples import Examples
from bbt_fast.tuner.encoding import Encoded
from bbt_fast.tuner.run import Parts

N_PROMPT, HIDDEN, VOCABULARY, CLASSES = 3, 8, 40, 2


class ToySession:
    def __init__(self, engine: ToyEngine, examples: Examples) -> None:
        self.engine, self.examples = engine, examples
        stages = 1 if engine.cuts == "input" else engine.n_layers
        self.committed = torch.zeros(stages, engine.n_prompt_tokens, engine.hidden_size)

    def _states(self, prompts: dict[int, Tensor]) -> list[Tensor]:
        mask = self.examples.attention_mask[..., None].float()
        hidden = (self.engine.word_embeddings[self.examples.input_ids] * mask).sum(1) / mask.sum(1)
        states = [hidden[None]]
        for layer in range(len(self.committed)):
            prompt = prompts.get(layer, self.committed[layer][None])
            states.append(torch.tanh(states[-1] @ self.engine.weights[layer] + prompt.mean(1)[:, None]))
        return states

    def evaluate(self, prompts: Tensor, layer: int = 0) -> Tensor:
        self.engine.calls.append((layer, len(prompts)))
        hidden = self._states({layer: prompts})[-1]
        return 3 * hidden @ self.engine.word_embeddings[self.examples.label_token_ids].T

    def commit(self, prompt: Tensor, layer: int = 0) -> None:
        self.committed[layer] = prompt

    def hidden_states(self, layer: int) -> Tensor:
        return self._states({})[layer][0]


class ToyEngine:
    name, precision, mode, device = "toy", "fp32", "add", torch.device("cpu")
    family = SimpleNamespace(kind="masked", prompt_start=1)
    export_seconds = 0.0
    n_prompt_tokens, hidden_size = N_PROMPT, HIDDEN

    def __init__(self, cuts: str, n_layers: int) -> None:
        generator = torch.Generator().manual_seed(5)
        self.cuts, self.n_layers = cuts, n_layers
        self.word_embeddings = torch.randn(VOCABULARY, HIDDEN, generator=generator)
        self.weights = torch.randn(n_layers, HIDDEN, HIDDEN, generator=generator) / HIDDEN**0.5
        self.parity: dict[str, float] = {}
        self.calls: list[tuple[int, int]] = []
        """(layer, population) of every evaluation."""

    def open(self, examples: Examples) -> ToySession:
        return ToySession(self, examples)


@pytest.fixture
def toy_engine() -> Callable[..., ToyEngine]:
    """A function that makes a toy engine."""

    def make(cuts: str = "input", n_layers: int = 3) -> ToyEngine:
        return ToyEngine(cuts, n_layers)

    return make


@pytest.fixture
def toy_parts() -> Callable[..., Parts]:
    """A function that draws data for the toy engine: two classes that differ in the tokens they like."""

    def encode(generator: torch.Generator, n: int) -> Encoded:
        labels = torch.arange(n) % CLASSES
        lengths = torch.randint(4, 9, (n,), generator=generator)
        mask = (torch.arange(9) < lengths[:, None]).long()
        low = 5 + labels[:, None] * 9
        ids = (low + torch.randint(0, 12, (n, 9), generator=generator)) * mask
        return Encoded(Examples(ids, mask, lengths - 1, torch.tensor([30, 31])), labels, 0)

    def make(seed: int = 0) -> Parts:
        generator = torch.Generator().manual_seed(seed)
        return Parts(*(encode(generator, n) for n in (16, 16, 50)))

    return make


@pytest.fixture
def quiet() -> Any:
    """A progress that shows nothing."""
    from bbt_fast.tuner.progress import Silent

    return Silent()
