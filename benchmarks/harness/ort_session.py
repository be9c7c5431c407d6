"""ONNX Runtime sessions for baselines and matrix products, as a user makes them."""

from __future__ import annotations

import onnxruntime as ort
import torch


def ort_session(model: str | bytes, device: torch.device) -> ort.InferenceSession:
    """Load a graph on a device, with as many threads as PyTorch has; on CUDA with PyTorch's stream."""
    ort.set_default_logger_severity(3)
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    providers: list[str | tuple[str, dict[str, str]]] = ["CPUExecutionProvider"]
    if device.type == "cuda":
        ort.preload_dlls()
        stream = torch.cuda.current_stream(device).cuda_stream
        providers.insert(0, ("CUDAExecutionProvider", {"user_compute_stream": str(stream)}))
    return ort.InferenceSession(model, options, providers=providers)
