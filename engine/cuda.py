"""CUDA for engines: a stream to queue and record work, and the GPU's name.

Tests replace ``Queue`` and run engines without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..export.bindings import Gpu


class Queue:
    """A CUDA stream that synchronizes with PyTorch's current stream on the device, without the host."""

    def __init__(self, device: torch.device) -> None:
        """Create a stream on a CUDA device."""
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    @property
    def handle(self) -> int:
        """The CUDA stream's handle for TensorRT."""
        return int(self._stream.cuda_stream)

    @property
    def gpu(self) -> Gpu:
        """The device's GPU."""
        return Gpu(torch.cuda.get_device_name(self._device), torch.cuda.get_device_capability(self._device))

    @contextmanager
    def use(self) -> Iterator[None]:
        """Queue the work of this block after PyTorch's earlier work and before its later work."""
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
        """Record work as a CUDA graph; return its replay function and the tensor that each replay writes.

        All graphs share the memory of their intermediate results, so they must run one after another on this queue.
        """
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            output = work()
        return graph.replay, output
