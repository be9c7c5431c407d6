"""The stock `transformers` model with prompts added to its layers' inputs, as in the original's model code."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedModel

from bbt_fast.engine import Examples
from bbt_fast.export.families import family_of

from ..workload import Workload
from .base import Contender


class Stock(Contender):
    """A contender on the stock model, which runs all layers on all texts with the prompts of all layers."""

    def __init__(self, workload: Workload, model: PreTrainedModel) -> None:
        """Draw the texts, and start with prompts of zeros."""
        super().__init__(workload, model)
        self.deep = workload.algorithm == "bbtv2"
        self.examples = workload.examples(model).to(self.device)
        shape = (model.config.num_hidden_layers if self.deep else 1, workload.n_prompt_tokens, model.config.hidden_size)
        self.committed = torch.zeros(shape, device=self.device)
        """[L or 1, n, H]: the layers' prompts."""

    def commit(self, prompt: Tensor, layer: int) -> None:
        """Keep a layer's prompt for later forward passes."""
        self.committed[layer] = prompt

    def all_prompts(self, prompts: Tensor, layer: int) -> Tensor:
        """Return K prompts of one layer with the committed prompts of the others: [K, L or 1, n, H]."""
        full = self.committed.repeat(len(prompts), 1, 1, 1)
        full[:, layer] = prompts.to(full)
        return full


class PromptedEncoder(nn.Module):
    """RoBERTa, BERT or GPT-2 up to its last hidden states, without the head."""

    def __init__(self, model: PreTrainedModel, deep: bool) -> None:
        """Hook the layers that prompts enter: the first, or all."""
        super().__init__()
        base: Any = model.base_model
        self.base = base
        self._prompts: Tensor | None = None
        family = family_of(model.config)
        self.start = family.prompt_start
        layers = list(base.h if family.kind == "decoder" else base.encoder.layer)
        for index, layer in enumerate(layers if deep else layers[:1]):
            layer.register_forward_pre_hook(partial(self._add, index), with_kwargs=True)

    def _add(self, index: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        del layer
        if self._prompts is None:
            return None  # another encoder of this model runs
        return (args[0] + self.added(args[0], self._prompts[:, index]), *args[1:]), kwargs

    def added(self, hidden: Tensor, prompt: Tensor) -> Tensor:
        """Return the summand of hidden states [B, S, H] for prompts [B, n, H]."""
        return pad(prompt, (0, 0, self.start, hidden.shape[1] - self.start - prompt.shape[1]))

    def forward(self, ids: Tensor, mask: Tensor | None, prompts: Tensor, **more: Any) -> Tensor:
        """Return the hidden states [B, S, H] for ids and mask [B, S] and prompts [B, L or 1, n, H].

        ``more`` is passed to the model.
        """
        self._prompts = prompts
        hidden: Tensor = self.base(input_ids=ids, attention_mask=mask, **more).last_hidden_state
        self._prompts = None
        return hidden


class FullHead(nn.Module):
    """The language-model head over the whole vocabulary, at the answer position; then the label words' columns."""

    def __init__(self, model: PreTrainedModel, examples: Examples) -> None:
        """Find the model's head."""
        super().__init__()
        whole: Any = model
        self.head: Any = whole.lm_head if hasattr(whole, "lm_head") else whole.cls
        self.position, self.words = examples.answer_position, examples.label_token_ids

    def forward(self, hidden: Tensor) -> Tensor:
        """Return label logits [K * N, C] float32 of the hidden states [K * N, S, H] of K candidates."""
        position = self.position.repeat(len(hidden) // len(self.position))
        answer = hidden[torch.arange(len(hidden), device=hidden.device), position]
        logits: Tensor = self.head(answer)[:, self.words]
        return logits.float()
