"""What engines ask of CUDA: a stream to queue work on and to record it from, and which GPU it is.

Tests put another class in the place of ``Queue`` and run engines without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..export.bindings import Gpu


class Queue:
    """A stream beside PyTorch's current one. Neither waits for the host, nor the host for them."""

    def __init__(self, device: torch.device) -> None:
        """Make a stream on a CUDA device."""
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    @property
    def handle(self) -> int:
        """The CUDA stream, as TensorRT takes it."""
        return int(self._stream.cuda_stream)

    @property
    def gpu(self) -> Gpu:
        """What the device is."""
        return Gpu(torch.cuda.get_device_name(self._device), torch.cuda.get_device_capability(self._device))

    @contextmanager
    def use(self) -> Iterator[None]:
        """Queue what runs within this block after PyTorch's work so far, and PyTorch's later work after it."""
        current = torch.cuda.current_stream(self._device)
        if current == self._stream:
            yield
            return
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            current.wait_stream(self._stream)

    def capture(self, work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Record work as a CUDA graph: return what replays it, and the tensor each replay writes.

        All graphs share the memory of their intermediate results, so they run one after another on this queue.
        """
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            output = work()
        return graph.replay, output
