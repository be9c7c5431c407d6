"""The workload of all contenders: model, texts, prompts and search."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bbt_fast.engine import Examples
from bbt_fast.engine.embeddings import spread_of
from bbt_fast.export.families import family_of
from bbt_fast.tuner.search.evolution import Evolution
from bbt_fast.tuner.search.projection import Projection, draw_projections, normal_scale

from .lengths import CLASSES, draw_lengths

ANSWER = {"decoder": 1, "masked": 3}
"""The distance of the answer's position from a text's end, by kind of model: the last token, or the mask."""
K_SHOT = 16
DEEP_SPREAD = 1.0
"""Standard deviation of the hidden states between layers, after a LayerNorm."""
SIGMA_ALPHA = {"bbt": (1.0, 1.0), "bbtv2": (0.2, 0.2)}
Algorithm = Literal["bbt", "bbtv2"]
ALGORITHMS: tuple[Algorithm, ...] = get_args(Algorithm)


@dataclass(frozen=True)
class Workload:
    """A model, a task's text lengths and a search, as names and numbers that are cheap to send to a process."""

    model: str
    algorithm: Algorithm
    task: str = "sst2"
    population: int = 20
    n_examples: int = 0
    """N; 0 for 16 of each of the task's classes."""
    n_prompt_tokens: int = 50
    intrinsic_dim: int = 500
    layers: tuple[int, ...] = ()
    """The layers that BBTv2 tunes in a round; empty for all."""
    sample: int = 0
    """The number of candidates on which one-by-one contenders are timed, the time scaled up; 0 for all."""
    text_length: int = 0
    """The tokens of every text; 0 draws the task's lengths."""
    threads: int = 0
    """CPU threads; 0 for PyTorch's number."""
    device: str = "cpu"
    seed: int = 0
    refused: bool = False
    """Whether to time contenders with wrong answers too."""

    @property
    def examples_count(self) -> int:
        """Return N."""
        return self.n_examples or K_SHOT * CLASSES[self.task]

    @cached_property
    def lengths(self) -> Tensor:
        """[N] int64: tokens per example, the prompt included."""
        if self.text_length:
            text = torch.full((self.examples_count,), self.text_length)
        else:
            text = draw_lengths(self.task, self.examples_count, self.seed)
        return text + self.n_prompt_tokens

    @cached_property
    def labels(self) -> Tensor:
        """[N] int64: classes, balanced."""
        return torch.arange(self.examples_count) % CLASSES[self.task]

    def examples(self, model: PreTrainedModel) -> Examples:
        """Return random texts of these lengths."""
        config = model.config
        generator = torch.Generator().manual_seed(self.seed)
        first = config.vocab_size // 10  # special tokens are below
        shape = (self.examples_count, int(self.lengths.max()))
        ids = torch.randint(first, config.vocab_size, shape, generator=generator)
        mask = (torch.arange(shape[1]) < self.lengths[:, None]).long()
        ids = ids.where(mask.bool(), torch.tensor(config.pad_token_id))
        family = family_of(config)
        ids[:, : family.prompt_start + self.n_prompt_tokens] = first  # the placeholders, equal in all texts
        words = torch.randperm(config.vocab_size - first, generator=generator)[: CLASSES[self.task]] + first
        return Examples(ids, mask, self.lengths - ANSWER[family.kind], words)

    def tuned_layers(self, model: PreTrainedModel) -> tuple[int, ...]:
        """Return the layers whose prompts are tuned in one timed round."""
        if self.algorithm == "bbt":
            return (0,)
        return self.layers or tuple(range(model.config.num_hidden_layers))

    def projections(self, model: PreTrainedModel, device: torch.device) -> dict[int, Projection]:
        """Draw one projection per tuned layer."""
        layers = self.tuned_layers(model)
        sigma, alpha = SIGMA_ALPHA[self.algorithm]
        words: Any = model.get_input_embeddings()
        spreads = [spread_of(words.weight) if layer == 0 else DEEP_SPREAD for layer in layers]
        scales = [normal_scale(spread, self.intrinsic_dim, alpha, sigma) for spread in spreads]
        origin = torch.zeros(self.n_prompt_tokens, model.config.hidden_size)
        drawn = draw_projections("normal", self.seed, self.intrinsic_dim, scales, [origin] * len(layers), device)
        return dict(zip(layers, drawn, strict=True))

    def evolutions(self, model: PreTrainedModel, aside: Executor | None = None) -> list[Evolution]:
        """Return one CMA-ES per tuned layer; ``aside`` decomposes their covariances."""
        sigma, _ = SIGMA_ALPHA[self.algorithm]
        return [
            Evolution(self.intrinsic_dim, sigma, self.population, seed=self.seed, layer=layer, aside=aside)
            for layer in self.tuned_layers(model)
        ]
