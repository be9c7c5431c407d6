"""ONNX Runtime sessions for baselines and matrix products, as a user would create them."""

from __future__ import annotations

import onnxruntime as ort
import torch

from bbt_fast.engine.ort import missing_library
from bbt_fast.export.errors import DeviceError


def ort_session(model: str | bytes, device: torch.device) -> ort.InferenceSession:
    """Load a graph on a device, with PyTorch's number of threads; on CUDA without TF32.

    Raises:
        DeviceError: if the CUDA provider does not load; ONNX Runtime would silently use the CPU.
    """
    ort.set_default_logger_severity(3)
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    providers: list[str | tuple[str, dict[str, str]]] = ["CPUExecutionProvider"]
    if device.type == "cuda":
        ort.preload_dlls()
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": str(device.index or 0), "use_tf32": "0"}))
    session = ort.InferenceSession(model, options, providers=providers)
    if device.type == "cuda" and "CUDAExecutionProvider" not in session.get_providers():
        raise DeviceError(f"ONNX Runtime's CUDA provider did not load: {missing_library()}; see `bbt-fast doctor`.")
    return session
