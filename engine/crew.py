"""Run calls of a runtime in parallel, each on one CPU thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from functools import cached_property
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


class Crew:
    """A thread pool; with one thread, the caller's thread does the work.

    Args:
        size: the number of threads.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        """The number of threads; it may be reduced."""

    def each(self, work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """Process all items and return the results in order.

        Items are started in order, so put large ones first. If one fails, the running ones finish and the others are
        cancelled.
        """

        def untracked(item: Item) -> Result:
            with torch.inference_mode():
                return work(item)

        if self.size == 1 or len(items) <= 1:
            return [untracked(item) for item in items]
        futures = [self._threads.submit(untracked, item) for item in items]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            for future in futures:
                future.cancel()
            wait(futures)
        return [future.result() for future in futures]

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.size, thread_name_prefix="bbt-fast")
