"""The losses that a search can minimise, as a table; each takes the label words' logits on the CPU.

numpy computes the cross entropies: PyTorch would wake all its CPU threads for a few exponentials, which takes 5 to 10
ms if they sleep, as they do while a GPU works.

Source: Sun et al. 2022, Sec. 4.1 and the authors' implementation; the two regularised ones name theirs. Only ``perf``
uses the metric.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .metrics import Metric

Loss = Callable[[Tensor, Tensor, Metric], Tensor]
HINGE_MARGIN = 2.0
SMOOTHING = 0.1
"""Share of each label's weight that is spread evenly over all classes."""
ENTROPY_WEIGHT = 0.3
"""Weight of an answer's entropy, in units of the cross entropy. For two classes the optimal gap of the logits is then
3.5; with smoothed labels it is 2.9."""


def cross_entropy_loss(logits: Tensor, labels: Tensor, metric: Metric, smoothing: float = 0.0) -> Tensor:
    """Return the mean cross entropy over the examples, [P]."""
    logs = _log_probabilities(logits)
    right = logs[:, np.arange(len(labels)), labels.numpy()]
    if smoothing:
        right = (1 - smoothing) * right + smoothing * logs.mean(axis=2)
    return torch.from_numpy(-right.mean(axis=1))


def smoothed_loss(logits: Tensor, labels: Tensor, metric: Metric) -> Tensor:
    """Return the mean cross entropy to smoothed labels, [P] (Szegedy et al. 2016, Sec. 7)."""
    return cross_entropy_loss(logits, labels, metric, SMOOTHING)


def entropy_loss(logits: Tensor, labels: Tensor, metric: Metric) -> Tensor:
    """Return the mean cross entropy less a part of the answers' entropy, [P] (Pereyra et al. 2017, Sec. 3.1)."""
    logs = _log_probabilities(logits)
    entropy = -(np.exp(logs) * logs).sum(axis=2).mean(axis=1)
    return cross_entropy_loss(logits, labels, metric) - ENTROPY_WEIGHT * torch.from_numpy(entropy)


def _log_probabilities(logits: Tensor) -> NDArray[np.float32]:
    """Return the logarithms of softmax over the last axis."""
    numbers: NDArray[np.float32] = logits.numpy()
    below = numbers - numbers.max(axis=-1, keepdims=True)
    logs: NDArray[np.float32] = below - np.log(np.exp(below).sum(axis=-1, keepdims=True))
    return logs


def hinge_loss(logits: Tensor, labels: Tensor, metric: Metric) -> Tensor:
    """Return the hinge loss of margin 2, summed over the wrong labels, mean over the examples, [P]."""
    index = labels[None, :, None].expand(len(logits), -1, 1)
    gap = (HINGE_MARGIN + logits - logits.gather(2, index)).clamp(min=0)
    return gap.scatter(2, index, 0.0).sum(dim=2).mean(dim=1)


def metric_loss(logits: Tensor, labels: Tensor, metric: Metric) -> Tensor:
    """Return minus the metric, [P]."""
    return -metric(logits, labels)


LOSSES: dict[str, Loss] = {
    "ce": cross_entropy_loss,
    "hinge": hinge_loss,
    "perf": metric_loss,
    "ce-smooth": smoothed_loss,
    "ce-entropy": entropy_loss,
}
