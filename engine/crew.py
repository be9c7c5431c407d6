"""Several calls of a runtime at a time, each on a CPU thread of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from functools import cached_property
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


class Crew:
    """Threads that share out pieces of work; where there would be one, the caller's own does it.

    Args:
        size: how many.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        """How many threads work; it may become less."""

    def each(self, work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """Do something with each item and return the results in order.

        An item is begun when a thread is free, so put large ones first. If one fails, what has begun is waited for and
        the rest dropped.
        """

        def untracked(item: Item) -> Result:
            with torch.inference_mode():
                return work(item)

        if self.size == 1 or len(items) <= 1:
            return [untracked(item) for item in items]
        futures: list[Future[Result]] = []
        try:
            futures += [self._threads.submit(untracked, item) for item in items]
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            for future in futures:
                future.cancel()
            wait(futures)
        return [future.result() for future in futures]

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.size, thread_name_prefix="bbt-fast")
