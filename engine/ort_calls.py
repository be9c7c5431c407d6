"""ONNX Runtime's calls recorded: sessions run again on the tensors that they were bound to.

ONNX Runtime 1.31 does not support sessions within a capture of its caller's: where a kernel stages arguments in pinned
memory (Concat, Split and batched MatMul do), it queues the memory's release on the stream, and each replay would
release it again (microsoft/onnxruntime pull request 32081, open, is to allow it). Its own graphs are safe, one for
each session and set of addresses. So a recording is the list of a chain's calls, and on CUDA each call replays a graph
of its session's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import count
from typing import Any

import torch
from torch import Tensor

from .cuda import Queue

EAGER = -1
"""The number that tells ONNX Runtime to run without a graph."""


class Calls:
    """Records the calls of an engine's sessions.

    Args:
        queue: the stream that the sessions run on; None on a CPU, where a recording saves binding only.
    """

    def __init__(self, queue: Queue | None = None) -> None:
        self.queue = queue
        self._recorded: list[Callable[[], None]] | None = None
        self._numbers: dict[Any, int] = {}
        self._next = count(1)
        self._outputs: dict[Any, Tensor] = {}

    @contextmanager
    def use(self) -> Iterator[None]:
        """Queue what runs within this block after PyTorch's work so far, and PyTorch's later work after it."""
        with nullcontext() if self.queue is None else self.queue.use():
            yield

    def capture(self, work: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        """Do work and record its calls: return what makes them again, and the tensor that the last one writes."""
        calls: list[Callable[[], None]] = []
        self._recorded = calls
        try:
            output = work()
        finally:
            self._recorded = None

        def replay() -> None:
            for call in calls:
                call()

        return replay, output

    def output(self, stage: int, like: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return memory for what a stage writes.

        Recorded calls share it: two stages' by turns, since only the next stage reads what one wrote.
        """
        if self._recorded is None:
            return like.new_empty(*shape, dtype=dtype)
        key = (stage % 2, *shape, dtype)
        if key not in self._outputs:
            self._outputs[key] = like.new_empty(*shape, dtype=dtype)
        return self._outputs[key]

    def forget(self) -> None:
        """Forget all numbers and shared memory: whatever is recorded from now on is recorded anew."""
        self._numbers.clear()
        self._outputs.clear()

    def make(self, call: Callable[[int], None], bound: Sequence[Any], tensors: Sequence[Tensor]) -> None:
        """Make a call, and note it if calls are recorded.

        Args:
            call: takes the number of the graph to record or replay.
            bound: what tells calls apart: the session, and shapes and addresses of what it reads and writes.
            tensors: what must live as long as the call can be made again.
        """
        if self._recorded is None:
            call(EAGER)
            return
        key = tuple(bound)
        if key not in self._numbers:
            self._numbers[key] = next(self._next)
        number = self._numbers[key]

        def again() -> None:
            assert tensors is not None
            call(number)

        self._recorded.append(again)
        again()
