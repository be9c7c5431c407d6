"""Prompt Tuning (Lester et al. 2021) and P-Tuning v2 (Liu et al. 2022): BBT's and BBTv2's prompts, by gradients.

The model is cut into the same stages, and the prompts join at the same positions: one at the input, or one at every
layer.
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

    Where they are added to placeholder tokens they begin at zero, as a search does. In cat mode equal tokens at equal
    positions would stay equal for ever, so they are drawn with the word embeddings' spread.

    Args:
        staged: the model, cut; its parameters are not this module's.
    """

    def __init__(self, staged: StagedModel) -> None:
        super().__init__()
        self._staged = (staged,)  # in a tuple, so that the frozen model is no part of this module
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
    trained = train(case, prompt, lambda rows: prompt(examples.select(rows)), lambda: answer("dev"))
    return Fitted(answer, "user", notes=trained.as_notes())


shallow, deep = partial(fit, cuts="input"), partial(fit, cuts="layers")
