"""Several seeds of one command: their combined results, and the ensemble of their prompts."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...export.ensemble import pooled
from ...export.errors import ArtifactError
from ..artifacts.answers import read_answers
from ..artifacts.result import Result
from ..search.metrics import METRICS

logger = logging.getLogger(__name__)

FIGURES: dict[str, Callable[[Result], float]] = {
    "zero-shot dev": lambda result: result.zero_shot.dev,
    "zero-shot test": lambda result: result.zero_shot.test,
    "train": lambda result: result.tuned.train,
    "dev": lambda result: result.tuned.dev,
    "test": lambda result: result.tuned.test,
}
"""The columns of the final table, as functions of a result."""


@dataclass(frozen=True)
class Spread:
    """Mean and deviation of a figure over the seeds."""

    mean: float
    std: float
    """Sample standard deviation; 0 for a single seed."""


@dataclass(frozen=True)
class SeedsResult:
    """The finished runs of several seeds."""

    results: tuple[Result, ...]
    ensemble: float | None
    """Test metric of the average of the label log-probabilities of all seeds' prompts; None if unknown."""
    output_dir: Path

    @property
    def spreads(self) -> dict[str, Spread]:
        """Mean and standard deviation of every figure."""
        found = {}
        for name, figure in FIGURES.items():
            values = [figure(result) for result in self.results]
            found[name] = Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)
        return found

    def as_dict(self) -> dict[str, Any]:
        """Return the contents of result.json."""
        return {
            "seeds": [result.seed for result in self.results],
            "metric": self.results[0].metric,
            "mean": {name: spread.mean for name, spread in self.spreads.items()},
            "std": {name: spread.std for name, spread in self.spreads.items()},
            "ensemble": self.ensemble,
            "results": [result.as_dict() for result in self.results],
        }


def ensemble_metric(logits: Tensor, labels: Tensor, metric: str) -> float:
    """Return the metric of the averaged label log-probabilities of K prompts.

    Args:
        logits: [K, N, C].
        labels: [N].
        metric: a name in ``METRICS``.
    """
    return float(METRICS[metric](pooled(logits)[None], labels.to(logits.device)))


def ensemble_of(results: Sequence[Result]) -> float | None:
    """Return the test metric of the ensemble of finished runs, from the answers in their folders.

    Returns None, with a warning, if a run's answers are missing or the test sets differ.
    """
    try:
        answers = [read_answers(result.output_dir) for result in results]
    except ArtifactError as error:
        logger.warning("%s There is no figure for the ensemble.", error)
        return None
    if len({each.examples for each in answers}) > 1:
        logger.warning("the seeds have different test sets or label words, so there is no figure for their ensemble.")
        return None
    return ensemble_metric(torch.stack([each.logits for each in answers]), answers[0].labels, results[0].metric)


def child_name(seed: int) -> str:
    """Return the name of a seed's folder in that of the command."""
    return f"seed-{seed}"
