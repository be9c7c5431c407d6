"""The losses a search can minimise, as a table; each sees only the label words' logits.

Source: Sun et al. 2022, Sec. 4.1 and the authors' implementation. The metric enters through ``perf`` alone.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import cross_entropy

from .metrics import Metric

Loss = Callable[[Tensor, Tensor, Metric], Tensor]
HINGE_MARGIN = 2.0


def cross_entropy_loss(logits: Tensor, labels: Tensor, metric: Metric) -> Tensor:
    """Return the mean cross entropy over the examples, [P]."""
    rows = cross_entropy(logits.flatten(0, 1), labels.repeat(len(logits)), reduction="none")
    return rows.reshape(logits.shape[:2]).mean(dim=1)


def hinge_loss(logits: Tensor, labels: Tensor, metric: Metric) -> Tensor:
    """Return the hinge loss of margin 2, summed over the wrong labels, mean over the examples, [P]."""
    index = labels[None, :, None].expand(len(logits), -1, 1)
    gap = (HINGE_MARGIN + logits - logits.gather(2, index)).clamp(min=0)
    return gap.scatter(2, index, 0.0).sum(dim=2).mean(dim=1)


def metric_loss(logits: Tensor, labels: Tensor, metric: Metric) -> Tensor:
    """Return minus the metric, [P]."""
    return -metric(logits, labels)


LOSSES: dict[str, Loss] = {"ce": cross_entropy_loss, "hinge": hinge_loss, "perf": metric_loss}
