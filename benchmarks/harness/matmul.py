"""The device's matrix-product rate in each library and precision: the upper bound for a forward pass.

The product is that of a feed-forward block: [tokens, H] times [H, 4H] times [4H, H], with constant weights whose layout
the library chooses.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch

from bbt_fast.export.precision import precision_of

from .ort_session import ort_session

TOKENS = {"cpu": 2048, "cuda": 16384}
SECONDS = 0.3
"""The time of a measurement, after the first call."""

Run = Callable[[], Any]


class MatmulRate:
    """Measures one library's rate in one precision."""

    def __init__(self, library: str, precision: str, device: torch.device, hidden: int, inner: int) -> None:
        """Prepare the product."""
        tokens = TOKENS[device.type]
        self._flop = 4.0 * tokens * hidden * inner
        self._device = device
        generator = np.random.default_rng(0)
        arrays = [
            generator.standard_normal(shape, dtype=np.float32) / shape[0] ** 0.5
            for shape in ((tokens, hidden), (hidden, inner), (inner, hidden))
        ]
        self._run = LIBRARIES[library](arrays, precision, device)
        self()

    def __call__(self) -> float:
        """Return FLOP per second, the median of some calls."""
        spent: list[float] = []
        while sum(spent) < SECONDS or len(spent) < 3:
            began = time.perf_counter()
            self._run()
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            spent.append(time.perf_counter() - began)
        return self._flop / float(np.median(spent))


def _torch(arrays: list[Any], precision: str, device: torch.device) -> Run:
    x, up, down = (torch.from_numpy(array).to(device, precision_of(precision).dtype) for array in arrays)

    def run() -> Any:
        with torch.inference_mode():
            return torch.nn.functional.linear(torch.nn.functional.linear(x, up_t), down_t)

    up_t, down_t = up.T.contiguous(), down.T.contiguous()
    return run


def _graph(arrays: list[Any], dtype: type) -> bytes:
    """Return the product as an ONNX model."""
    x, up, down = (array.astype(dtype) for array in arrays)
    kind, (tokens, hidden) = "float16" if dtype is np.float16 else "float", x.shape
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 21]> product ({kind}[{tokens}, {hidden}] x) => '
        f"({kind}[{tokens}, {hidden}] y) {{ wide = MatMul(x, up)\n y = MatMul(wide, down) }}"
    )
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(array, name) for array, name in ((up, "up"), (down, "down"))
    )
    return bytes(model.SerializeToString())


def _onnxruntime(arrays: list[Any], precision: str, device: torch.device) -> Run:
    import onnxruntime as ort

    dtype = np.float16 if precision == "fp16" else np.float32
    session = ort_session(_graph(arrays, dtype), device)
    binding = session.io_binding()
    x = ort.OrtValue.ortvalue_from_numpy(arrays[0].astype(dtype), device.type, device.index or 0)
    binding.bind_ortvalue_input("x", x)
    binding.bind_output("y", device.type, device.index or 0)

    def run() -> Any:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return run


def _openvino(arrays: list[Any], precision: str, device: torch.device) -> Run:
    import openvino

    del device
    options = {
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": str(torch.get_num_threads()),
        "ENABLE_CPU_PINNING": "NO",
    }
    core = openvino.Core()
    request = core.compile_model(core.read_model(_graph(arrays, np.float32)), "CPU", options).create_infer_request()
    x = openvino.Tensor(arrays[0], shared_memory=True)
    request.set_tensor("x", x)

    def run() -> Any:
        return x, request.infer()  # keeps x alive: OpenVINO does not own the memory that it reads

    return run


LIBRARIES: dict[str, Callable[[list[Any], str, torch.device], Run]] = {
    "torch": _torch,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}
