"""The original implementation's evaluation on the stock model, with and without its ``--parallel``."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bbt_fast.tuner.search.generation import Array
from bbt_fast.tuner.search.projection import Projection

from ..workload import Workload
from .base import Clock
from .stock import FullHead, PromptedEncoder, Stock


class Original(Stock):
    """Eager fp32, one candidate per forward pass, all texts padded to the longest, every layer every time.

    The full-vocabulary head runs at the answer position, as in the original's RoBERTa code. (Its BERT code runs it at
    every position and takes twice as long.) The CPU computes A z, one candidate at a time.
    """

    attention = "eager"

    def __init__(self, workload: Workload, model: PreTrainedModel) -> None:
        """Put the model on the device and hook its layers."""
        super().__init__(workload, model)
        model.set_attn_implementation(self.attention)
        model.to(self.device)  # type: ignore[arg-type]
        self.encoder, self.head = PromptedEncoder(model, self.deep), FullHead(model, self.examples)

    @property
    def projection_device(self) -> torch.device:
        """A stays on the CPU."""
        return torch.device("cpu")

    def answer(self, prompts: Tensor, layer: int) -> Tensor:
        """Answer one candidate after another."""
        return torch.stack([self._forward(prompt[None], layer)[0] for prompt in prompts])

    def evaluate(self, projection: Projection, candidates: Array, layer: int, clock: Clock) -> Tensor:
        """Project and answer one candidate after another; with a sample, the other candidates repeat its answers."""
        population = len(candidates)
        timed = min(self.workload.sample or population, population)
        answers = []
        for candidate in candidates[:timed]:
            with clock("project", population / timed):
                prompt = projection(candidate[None])
            with clock("evaluate", population / timed):
                answers.append(self._forward(prompt, layer)[0])
        return torch.stack([answers[i % timed] for i in range(population)])

    def attention_kernel(self) -> str:
        """Name eager attention."""
        return "eager: matmul, softmax, matmul"

    def _forward(self, prompts: Tensor, layer: int) -> Tensor:
        """Run K candidates [K, n, H] on all texts in one forward pass: [K, N, C]."""
        candidates, count = len(prompts), len(self.examples)
        with torch.inference_mode():
            hidden = self.encoder(
                self.examples.input_ids.repeat(candidates, 1),
                self.examples.attention_mask.repeat(candidates, 1),
                self.all_prompts(prompts, layer).repeat_interleave(count, dim=0),
            )
            logits: Tensor = self.head(hidden)
            return logits.reshape(candidates, count, -1)


class OriginalParallel(Original):
    """The original with ``--parallel``: the whole population in one forward pass. Its BBTv2 has no such flag."""

    algorithms: ClassVar[tuple[str, ...]] = ("bbt",)

    def answer(self, prompts: Tensor, layer: int) -> Tensor:
        """Answer all candidates at once."""
        return self._forward(prompts, layer)

    def evaluate(self, projection: Projection, candidates: Array, layer: int, clock: Clock) -> Tensor:
        """Project one candidate after another on the CPU; answer all at once."""
        with clock("project"):
            prompts = torch.cat([projection(candidate[None]) for candidate in candidates])
        with clock("evaluate"):
            return self.answer(prompts, layer)


class Reference(Original):
    """The reference of all answers: the stock model, fp32, SDPA, no savings."""

    attention = "sdpa"
