"""The OpenVINO engine: the CPU's fast one, in fp32 and in bf16."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..export.errors import ArtifactError
from ..export.model import Encoded, StagedModel
from .base import Engine
from .cpu import cpu_kind
from .faults import first_line
from .onnx_files import OnnxFiles, onnx_files
from .onnx_runner import OnnxRunner
from .session import Runner

COMPUTES_IN = {"fp32": "f32", "bf16": "bf16"}
"""OpenVINO's names of the precisions."""


class OpenvinoRunner(OnnxRunner):
    """One compiled model per stage, whatever the shapes; tensors are shared by address."""

    def __init__(self, files: OnnxFiles, staged: StagedModel, encoded: Encoded, precision: str) -> None:
        """Compile the graphs."""
        super().__init__(files, staged, encoded)
        self._requests = [_request(path, precision) for path in files.paths]

    def _infer(self, stage: int, inputs: dict[str, Tensor], output: Tensor) -> None:
        request = self._requests[stage]
        for name, tensor in inputs.items():
            request.set_tensor(name, _shared(tensor))
        request.set_output_tensor(_shared(output))
        request.infer()


class OpenvinoEngine(Engine):
    """OpenVINO on the CPU. In bf16 it converts inside a stage: what enters and leaves one is fp32."""

    name = "openvino"
    shares_prefix = True
    precisions: ClassVar[dict[str, tuple[str, ...]]] = {"cpu": ("bf16", "fp32")}
    tensor_dtypes: ClassVar[dict[str, torch.dtype]] = {"bf16": torch.float32}

    def _load(self, encoded: Encoded) -> OpenvinoRunner:
        files = onnx_files(self.staged, encoded, self.dtype, self.onnx_model_path)
        return OpenvinoRunner(files, self.staged, encoded, self.precision)

    def _parity_record(self, runner: Runner) -> Path | None:
        assert isinstance(runner, OpenvinoRunner)
        return runner.files.parity_record(f"openvino-{version('openvino')}-{self.precision}-{cpu_kind()}")


def _request(path: Path, precision: str) -> Any:
    """Compile a graph and return the request that runs it, on as many threads as PyTorch uses.

    One stream takes all threads; pinning them would fight with PyTorch's and with other processes' threads.
    """
    options = {
        "INFERENCE_PRECISION_HINT": COMPUTES_IN[precision],
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": str(torch.get_num_threads()),
        "ENABLE_CPU_PINNING": "NO",
    }
    try:
        return _core().compile_model(str(path), "CPU", options).create_infer_request()
    except RuntimeError as error:
        raise ArtifactError(
            f"OpenVINO {version('openvino')} cannot load {path}: {first_line(error)}. If the file is gone, run the "
            "command again: it is built anew. Else update openvino, or use another --engine."
        ) from error


@cache
def _core() -> Any:
    """Return the one OpenVINO core of this process: all models share its threads."""
    import openvino

    return openvino.Core()


def _shared(tensor: Tensor) -> Any:
    """Return an OpenVINO tensor over the same memory."""
    import openvino

    return openvino.Tensor(tensor.numpy(), shared_memory=True)
