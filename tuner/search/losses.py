"""The losses a search can minimise, as a table; each sees only the label words' logits.

Source: Sun et al. 2022, Sec. 4.1 and the authors' implementation; the two regularised ones name theirs. The metric
enters through ``perf`` alone.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import cross_entropy

from .metrics import Metric

Loss = Callable[[Tensor, Tensor, Metric], Tensor]
HINGE_MARGIN = 2.0
SMOOTHING = 0.1
"""Share of each label's weight that is spread evenly over all classes."""
ENTROPY_WEIGHT = 0.3
"""What an answer's entropy counts, in units of the cross entropy. Of two classes, the best gap of the logits is then
3.5; to the smoothed labels it is 2.9."""


def cross_entropy_loss(logits: Tensor, labels: Tensor, metric: Metric, smoothing: float = 0.0) -> Tensor:
    """Return the mean cross entropy over the examples, [P]."""
    rows = cross_entropy(logits.flatten(0, 1), labels.repeat(len(logits)), reduction="none", label_smoothing=smoothing)
    return rows.reshape(logits.shape[:2]).mean(dim=1)


def smoothed_loss(logits: Tensor, labels: Tensor, metric: Metric) -> Tensor:
    """Return the mean cross entropy to smoothed labels, [P] (Szegedy et al. 2016, Sec. 7)."""
    return cross_entropy_loss(logits, labels, metric, SMOOTHING)


def entropy_loss(logits: Tensor, labels: Tensor, metric: Metric) -> Tensor:
    """Return the mean cross entropy less a part of the answers' entropy, [P] (Pereyra et al. 2017, Sec. 3.1)."""
    logs = logits.log_softmax(dim=2)
    entropy = -(logs.exp() * logs).sum(dim=2).mean(dim=1)
    return cross_entropy_loss(logits, labels, metric) - ENTROPY_WEIGHT * entropy


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
