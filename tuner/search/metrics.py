"""The metrics of a run, as a table; each scores a whole population at once."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Metric = Callable[[Tensor, Tensor], Tensor]
"""([P, N, C] label logits, [N] classes) -> [P] float64 in [0, 1]."""


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the share of examples whose class gets the highest logit, [P]."""
    return (logits.argmax(dim=2) == labels).double().mean(dim=1)


def f1(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the F1 score of class 1, as GLUE scores MRPC, [P]; 0 where class 1 neither occurs nor is predicted."""
    predicted, true = logits.argmax(dim=2) == 1, labels == 1
    hits = (predicted & true).sum(dim=1)
    named = predicted.sum(dim=1) + true.sum()
    return 2.0 * hits.double() / named.clamp(min=1)


def confusion(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the confusion matrix: a row per true class, a column per predicted class, [C, C] int64.

    Args:
        logits: one prompt's, [N, C].
        labels: [N].
    """
    classes = logits.shape[1]
    return (labels * classes + logits.argmax(dim=1).to(labels.device)).bincount(minlength=classes**2).view(-1, classes)


METRICS: dict[str, Metric] = {"accuracy": accuracy, "f1": f1}
