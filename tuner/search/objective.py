"""The loss and the metric of candidates and prompts on one part of the data, computed by an engine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from ...export.errors import NumericsError
from .generation import Array, Scores
from .losses import Loss
from .metrics import Metric
from .projection import Projection, Space


@dataclass(frozen=True)
class Yardstick:
    """The loss and the metric of logits."""

    loss: Loss
    metric: Metric

    def __call__(self, logits: Tensor, labels: Tensor) -> tuple[Array, Array]:
        """Return the loss and the metric of every prompt, [P] each, from label logits [P, N, C] and classes [N].

        Raises:
            NumericsError: if a loss is NaN or infinite, since its rank would silently mislead the search.
        """
        logits, labels = logits.float(), labels.to(logits.device)
        both = torch.stack([self.loss(logits, labels, self.metric).double(), self.metric(logits, labels)])
        loss, metric = both.cpu().numpy()
        broken = int((~np.isfinite(loss)).sum())
        if broken:
            raise NumericsError(
                f"{broken} of {len(loss)} prompts got a loss that is NaN or infinite. Try --precision fp32."
            )
        return loss, metric


@dataclass(frozen=True)
class Score:
    """The score of one prompt on a part of the data."""

    metric: float
    loss: float


@runtime_checkable
class Projects(Protocol):
    """A session that projects candidates where it answers them, so that only z travels."""

    def evaluate_projected(self, candidates: Array, matrix: Tensor, origin: Tensor, layer: int = 0) -> Tensor:
        """Answer candidates [P, d] whose prompts are A z + p0."""
        ...


class Objective:
    """The oracle of a search: projects candidates, calls the engine, and computes the loss on the training examples."""

    def __init__(self, session: Any, labels: Tensor, projections: Sequence[Space], yardstick: Yardstick) -> None:
        """Bind a session to the classes [N] of its examples and to one projection per layer."""
        self.session, self.labels, self.projections, self.yardstick = session, labels, projections, yardstick
        self.engine_seconds = 0.0
        """Time from the call of the engine to the losses of its answers."""

    def evaluate(self, candidates: Array, layer: int) -> Scores:
        """Score candidates [P, d] for a layer's prompt; changes nothing.

        Raises:
            NumericsError: if the engine returns NaN or infinity.
        """
        projection = self.projections[layer]
        if isinstance(self.session, Projects) and isinstance(projection, Projection):
            start = time.perf_counter()
            logits = self.session.evaluate_projected(candidates, projection.matrix, projection.origin, layer)
        else:
            prompts = projection(candidates)
            start = time.perf_counter()
            logits = self.session.evaluate(prompts, layer=layer)
        fitness, metric = self.yardstick(logits, self.labels)
        self.engine_seconds += time.perf_counter() - start
        return Scores(fitness, float(metric[fitness.argmin()]))

    def commit(self, candidate: Array, layer: int) -> None:
        """Fix a layer's prompt, given as the candidate [d], for all later calls."""
        self.session.commit(self.projections[layer](candidate[None])[0], layer=layer)


def project_all(projections: Sequence[Space], candidates: Sequence[Array]) -> Tensor:
    """Return the prompts [L, n, H] of one candidate per layer."""
    pairs = zip(projections, candidates, strict=True)
    return torch.cat([projection(np.asarray(candidate)[None]) for projection, candidate in pairs])


def answer(session: Any, prompts: Tensor) -> Tensor:
    """Answer K sets of prompts.

    Args:
        session: any engine's; its committed prompts are overwritten.
        prompts: [K, L, n, H]; L is 1 for a prompt at the input.

    Returns:
        Label logits [K, N, C].
    """
    if prompts.shape[1] == 1:
        logits: Tensor = session.evaluate(prompts[:, 0], layer=0)
        return logits
    answers = []
    for layers in prompts:
        for layer in range(1, len(layers)):
            session.commit(layers[layer], layer=layer)
        answers.append(session.evaluate(layers[:1], layer=0)[0])
    return torch.stack(answers)
