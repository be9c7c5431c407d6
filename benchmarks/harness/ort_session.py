"""ONNX Runtime sessions for baselines and matrix products, on the thread pool that bbt-fast's engine uses too."""

from __future__ import annotations

from contextlib import suppress
from functools import cache

import onnxruntime as ort
import torch


def ort_session(model: str | bytes, device: torch.device) -> ort.InferenceSession:
    """Load a graph on a device; on CUDA with PyTorch's stream."""
    start_pool()
    options = ort.SessionOptions()
    options.use_per_session_threads = False
    providers: list[str | tuple[str, dict[str, str]]] = ["CPUExecutionProvider"]
    if device.type == "cuda":
        ort.preload_dlls()
        stream = torch.cuda.current_stream(device).cuda_stream
        providers.insert(0, ("CUDAExecutionProvider", {"user_compute_stream": str(stream)}))
    return ort.InferenceSession(model, options, providers=providers)


@cache
def start_pool() -> None:
    """Set the size of the one thread pool of this process."""
    ort.set_default_logger_severity(3)
    with suppress(ort.capi.onnxruntime_pybind11_state.Fail):  # bbt-fast's engine was first, with the same size
        ort.set_global_thread_pool_sizes(torch.get_num_threads(), 1)
