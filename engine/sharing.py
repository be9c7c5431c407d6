"""Divide work among workers: candidates by measured speed, texts by their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

WORTH = 0.1
"""The least relative gain that justifies new shares: a new size may require a new compilation or recording."""
NEWEST = 0.5
"""The weight of the newest measurement in a speed."""


def proportional(speeds: Sequence[float], total: int) -> list[int]:
    """Divide a number of pieces in proportion to speeds, so that the last worker finishes as early as possible.

    Each piece goes to the worker that would finish it first.
    """
    sizes = [0] * len(speeds)
    for _ in range(total):
        first = min(range(len(speeds)), key=lambda one: ((sizes[one] + 1) / speeds[one], one))
        sizes[first] += 1
    return sizes


def even_parts(lengths: Tensor, count: int) -> list[Tensor]:
    """Divide texts into parts of similar length with about equal numbers of tokens.

    Args:
        lengths: [N], tokens of each text.
        count: the number of parts; fewer if there are fewer texts.

    Returns:
        The rows of each part; together they are 0 to N - 1.
    """
    count = min(count, len(lengths))
    order = torch.argsort(lengths, stable=True)
    tokens = lengths[order].cumsum(0)
    goals = tokens[-1] * torch.arange(1, count) / count
    bounds = torch.searchsorted(tokens.float(), goals.float()).tolist()
    edges = [0]
    for number, bound in enumerate(bounds, 1):
        edges.append(min(max(bound, edges[-1] + 1), len(lengths) - (count - number)))
    edges.append(len(lengths))
    return [order[low:high] for low, high in pairwise(edges)]


def largest_share(cpus: Sequence[int], workers: int) -> int:
    """Return the largest number of CPUs that each of several processes can have, at least 1.

    Args:
        cpus: the CPUs of each node; a process runs on one node.
        workers: the number of processes.
    """
    return max((one for one in range(1, max(cpus, default=1) + 1) if sum(n // one for n in cpus) >= workers), default=1)


class Shares:
    """The speeds of workers and their shares of a population."""

    def __init__(self) -> None:
        self._speeds: dict[Any, float] = {}
        self._warm: set[Any] = set()
        self._last: tuple[list[Any], int, list[int]] | None = None

    def learn(self, member: Any, work: float, seconds: float) -> None:
        """Update a worker's speed with a measurement.

        The first one here, and the first after a restart (speed 0), does not count for shares: it may contain a
        compilation.
        """
        new = work / max(seconds, 1e-9)
        first = self.speed(member) is None
        old = None if first or member not in self._warm else self._speeds[member]
        self._speeds[member] = member.speed = new if old is None else (1 - NEWEST) * old + NEWEST * new
        (self._warm.discard if first else self._warm.add)(member)

    def speed(self, member: Any) -> float | None:
        """Return a worker's speed in work per second, or None if it is unknown."""
        return self._speeds.get(member) if member is not None and member.speed else None

    def of(self, members: Sequence[Any], population: int) -> list[int]:
        """Return the number of candidates of each worker; an unknown speed counts as the mean of the others."""
        found = [self.speed(member) if member in self._warm else None for member in members]
        known = [speed for speed in found if speed is not None]
        usual = sum(known) / len(known) if known else 1.0
        speeds = [speed or usual for speed in found]
        new = proportional(speeds, population)
        if self._last is not None and self._last[:2] == (list(members), population):
            old = self._last[2]
            if _longest(old, speeds) <= (1 + WORTH) * _longest(new, speeds):
                return old
        self._last = list(members), population, new
        return new


def _longest(sizes: Sequence[int], speeds: Sequence[float]) -> float:
    """Return when the last worker finishes."""
    return max(size / speed for size, speed in zip(sizes, speeds, strict=True))
