"""Record and replay ONNX Runtime calls with their bound tensors.

ONNX Runtime 1.31 does not support a CUDA graph capture by its caller. Some kernels (Concat, Split, batched MatMul)
stage arguments in pinned memory and queue the release of that memory on the stream, so each replay would release it
again (the open pull request 32081 of microsoft/onnxruntime would allow it). Its sessions' own CUDA graphs are safe, one
per session and set of addresses. So a recording is a list of calls, and on CUDA each call replays its session's graph.
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
"""The graph number that makes ONNX Runtime run without a graph."""


class Calls:
    """Records the calls of an engine's sessions.

    Args:
        queue: the stream of the sessions; None on a CPU, where a recording only saves the binding of tensors.
    """

    def __init__(self, queue: Queue | None = None) -> None:
        self.queue = queue
        self._recorded: list[Callable[[], None]] | None = None
        self._numbers: dict[Any, int] = {}
        self._next = count(1)
        self._outputs: dict[Any, Tensor] = {}

    @contextmanager
    def use(self) -> Iterator[None]:
        """Queue the work of this block after PyTorch's earlier work and before its later work."""
        with nullcontext() if self.queue is None else self.queue.use():
            yield

    def capture(self, work: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        """Run work and record its calls; return a function that repeats them, and the tensor that it writes."""
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
        """Allocate a stage's output.

        Recorded calls share two alternating buffers, because only the next stage reads an output.
        """
        if self._recorded is None:
            return like.new_empty(*shape, dtype=dtype)
        key = (stage % 2, *shape, dtype)
        if key not in self._outputs:
            self._outputs[key] = like.new_empty(*shape, dtype=dtype)
        return self._outputs[key]

    def forget(self) -> None:
        """Discard all graph numbers and shared memory."""
        self._numbers.clear()
        self._outputs.clear()

    def make(self, call: Callable[[int], None], bound: Sequence[Any], tensors: Sequence[Tensor]) -> None:
        """Make a call, and record it during a capture.

        Args:
            call: takes the number of the graph to record or replay.
            bound: the call's identity: its session, and the shapes and addresses of its tensors.
            tensors: the tensors that must live as long as the recording.
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
