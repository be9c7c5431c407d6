"""Prompt Tuning (Lester et al. 2021) and P-Tuning v2 (Liu et al. 2022): the prompts of BBT and BBTv2, by gradients.

The stages and the positions of the prompts are those of a search: one prompt at the input, or one at every layer.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from bbt_fast.benchmarks.methods.method import Case, Fitted, encoded_part
from bbt_fast.benchmarks.methods.prompting import in_batches
from bbt_fast.benchmarks.methods.training import train
from bbt_fast.engine.embeddings import LocalEmbeddings
from bbt_fast.engine.reference import ModuleRunner
from bbt_fast.export.examples import Examples
from bbt_fast.export.model import Cuts, StagedModel


class SoftPrompt(nn.Module):
    """The prompts of all stages, [L or 1, n, H].

    In add mode they start at zero, as a search does. In cat mode equal tokens would get equal gradients and stay equal,
    so they are drawn with the spread of the word embeddings.

    Args:
        staged: the model in stages; its parameters stay outside this module.
    """

    def __init__(self, staged: StagedModel) -> None:
        super().__init__()
        self._staged = (staged,)  # in a tuple, so that PyTorch does not register the frozen model
        spread = LocalEmbeddings(staged.word_embeddings).spread if staged.mode == "cat" else 0.0
        shape = (staged.n_stages, staged.n_prompt_tokens, staged.hidden_size)
        self.values = nn.Parameter((spread * torch.randn(shape)).to(staged.model.device))

    def forward(self, examples: Examples) -> Tensor:
        """Return the label words' logits, [N, C]."""
        encoded = self._staged[0].encode(examples)
        runner, hidden = ModuleRunner(encoded.stages), encoded.hidden
        for stage, prompt in enumerate(self.values):
            hidden = runner(stage, hidden, prompt[None], encoded.tensors)
        return hidden[0]


def fit(case: Case, cuts: Cuts) -> Fitted:
    """Train the prompts."""
    options = case.options
    prompt = SoftPrompt(StagedModel(case.model, options.cat_or_add, options.n_prompt_tokens, cuts))

    def answer(part: str) -> Tensor:
        return in_batches(encoded_part(case.prompted, part).examples, prompt)

    examples = case.prompted.train.examples
    return Fitted(answer, "user", notes=train(case, prompt, lambda rows: prompt(examples.select(rows)), answer))


shallow, deep = partial(fit, cuts="input"), partial(fit, cuts="layers")
