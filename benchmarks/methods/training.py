"""Gradient descent with AdamW and early stopping, the same for every method with gradients.

The learning rate rises over the first tenth of the steps, then falls linearly to zero. The development set scores each
epoch: the best epoch is kept, and training stops after ``patience`` epochs without a better one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bbt_fast.benchmarks.methods.method import Case
from bbt_fast.tuner.run.selection import better

WARM_UP = 0.1
CLIP = 1.0
"""The largest norm of the gradients."""


def train(
    case: Case, learner: nn.Module, logits: Callable[[Tensor], Tensor], answer: Callable[[str], Tensor]
) -> dict[str, int]:
    """Train the parameters that require gradients; leave the learner at its best epoch, in evaluation mode.

    Args:
        case: its setting has lr, epochs, batch_size and patience, and optionally weight_decay.
        learner: holds the parameters.
        logits: from rows [M] of the training examples to scores of the classes [M, C], with gradients.
        answer: from ``dev`` to scores of the classes [N, C], without gradients.

    Returns:
        The notes for a record: the epochs that ran, the epoch that was kept (0 is the start), the trained parameters.
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
    best, kept, state = case.score(answer("dev"), "dev"), 0, _copy(parameters)
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
        score = case.score(answer("dev"), "dev")
        if better(score, best):
            best, kept, state = score, epoch, _copy(parameters)
        elif epoch - kept >= setting["patience"]:
            break
    with torch.no_grad():
        for parameter, value in zip(parameters, state, strict=True):
            parameter.copy_(value)
    return {"epochs": epoch, "kept_epoch": kept, "trained_parameters": sum(p.numel() for p in parameters)}


def _copy(parameters: list[nn.Parameter]) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in parameters]
