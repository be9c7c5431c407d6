"""Gradient descent, the same for every method that has gradients: AdamW, judged on the development set.

The learning rate rises over the first tenth of the steps and falls linearly to zero after it. After each epoch the
development set is scored; what is kept is the best of them, and the end comes early after ``patience`` epochs without a
better one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bbt_fast.benchmarks.methods.method import Case
from bbt_fast.tuner.run.selection import better
from bbt_fast.tuner.search.objective import Score

WARM_UP = 0.1
CLIP = 1.0
"""The norm that gradients are cut to."""


@dataclass(frozen=True)
class Trained:
    """What a training came to."""

    score: Score
    """Of the kept epoch, on the development set."""
    epochs: int
    """How many were run."""
    kept: int
    """The epoch that was kept, from 1; 0 is the beginning."""
    parameters: int
    """How many values were trained."""

    def as_notes(self) -> dict[str, Any]:
        """Return what a record says of it."""
        return {"epochs": self.epochs, "kept_epoch": self.kept, "trained_parameters": self.parameters}


def train(case: Case, learner: nn.Module, logits: Callable[[Tensor], Tensor], answer: Callable[[], Tensor]) -> Trained:
    """Train what a learner has with ``requires_grad``, and leave it, in evaluation mode, as it was at its best.

    Args:
        case: its setting has lr, epochs, batch_size and patience, and perhaps weight_decay.
        learner: holds the parameters; its training mode is switched.
        logits: from rows [M] of the training examples to scores of the classes [M, C], with gradients.
        answer: the same for all development examples, without.
    """
    setting, labels = case.setting, case.labels("train").to(case.device)
    parameters = [p for p in learner.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=setting["lr"], weight_decay=setting.get("weight_decay", 0.0))
    batches = -(-len(labels) // setting["batch_size"])
    steps = setting["epochs"] * batches
    warm = max(1, round(WARM_UP * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (steps - step) / max(1, steps - warm))
    )
    generator = torch.Generator().manual_seed(case.options.seed)
    learner.eval()
    best, kept, state = case.score(answer(), "dev"), 0, _copy(parameters)
    epoch = 0
    for epoch in range(1, setting["epochs"] + 1):
        learner.train()
        for rows in torch.split(torch.randperm(len(labels), generator=generator), setting["batch_size"]):
            optimizer.zero_grad()
            torch.autograd.backward(cross_entropy(logits(rows), labels[rows]))
            nn.utils.clip_grad_norm_(parameters, CLIP)
            optimizer.step()
            schedule.step()
        learner.eval()
        score = case.score(answer(), "dev")
        if better(score, best):
            best, kept, state = score, epoch, _copy(parameters)
        elif epoch - kept >= setting["patience"]:
            break
    with torch.no_grad():
        for parameter, value in zip(parameters, state, strict=True):
            parameter.copy_(value)
    return Trained(best, epoch, kept, sum(p.numel() for p in parameters))


def _copy(parameters: list[nn.Parameter]) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in parameters]
