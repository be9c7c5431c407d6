"""The OpenVINO engine: fast on CPUs, in fp32 and bf16."""

from __future__ import annotations

import tempfile
import threading
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar
from xml.etree import ElementTree

import torch
from torch import Tensor

from ..export.errors import ArtifactError, first_line
from ..export.model import Encoded, StagedModel
from .base import Engine
from .cpu import cpu_kind, has_bf16
from .onnx_files import OnnxFiles, onnx_files
from .onnx_runner import OnnxRunner
from .runner import Runner

COMPUTES_IN = {"fp32": "f32", "bf16": "bf16"}
"""OpenVINO's names of the precisions."""
SUMS = ("Add", "Multiply", "MVN")
"""OpenVINO's operators of the residual sums and of LayerNorm."""


class OpenvinoRunner(OnnxRunner):
    """One compiled model per stage for all shapes, and one request per thread; tensors are passed by address."""

    def __init__(self, files: OnnxFiles, staged: StagedModel, encoded: Encoded, precision: str) -> None:
        """Compile the graphs."""
        super().__init__(files, staged, encoded)
        self._models = [
            _compiled(path, precision, part.answers) for path, part in zip(files.paths, encoded.stages, strict=True)
        ]
        self._mine = threading.local()

    def _infer(self, stage: int, inputs: dict[str, Tensor], output: Tensor) -> None:
        requests: dict[int, Any] = vars(self._mine).setdefault("requests", {})
        if stage not in requests:
            requests[stage] = self._models[stage].create_infer_request()
        request = requests[stage]
        for name, tensor in inputs.items():
            request.set_tensor(name, _shared(tensor))
        request.set_output_tensor(_shared(output))
        request.infer(share_outputs=True)  # otherwise it also returns copies


class OpenvinoEngine(Engine):
    """OpenVINO on the CPU. In bf16, matrix products are bf16; hidden states, residual sums and logits stay fp32."""

    name = "openvino"
    one_thread_calls = True
    cpu_tokens = 1536
    shares_prefix = True
    precisions: ClassVar[dict[str, tuple[str, ...]]] = {"cpu": ("bf16", "fp32")}
    tensor_dtypes: ClassVar[dict[str, torch.dtype]] = {"bf16": torch.float32}

    @classmethod
    def precision_fault(cls, precision: str, device: torch.device) -> str | None:
        """Return why OpenVINO cannot compute in a precision on this CPU, or None if it can."""
        if precision != "bf16" or has_bf16():
            return None
        return (
            "this CPU has no bf16 instructions, and OpenVINO would emulate them at a fraction of fp32's rate, or "
            "compute in fp32 instead"
        )

    def _load(self, encoded: Encoded) -> OpenvinoRunner:
        files = onnx_files(self.staged, encoded, self.dtype, self.onnx_model_path)
        return OpenvinoRunner(files, self.staged, encoded, self.precision)

    def _parity_record(self, runner: Runner) -> Path | None:
        assert isinstance(runner, OpenvinoRunner)
        return runner.files.parity_record(f"openvino-{version('openvino')}-{self.precision}-{cpu_kind()}")


def _compiled(path: Path, precision: str, answers: bool) -> Any:
    """Compile a graph for parallel requests with one thread each, as many as PyTorch has threads.

    Each request has its own activations; the weights are shared. Threads are not pinned, because pinned threads would
    compete with PyTorch's and other processes' threads.
    """
    threads = str(torch.get_num_threads())
    options = {
        "INFERENCE_PRECISION_HINT": COMPUTES_IN[precision],
        "NUM_STREAMS": threads,
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": "NO",
    }
    try:
        with tempfile.TemporaryDirectory() as folder:
            model = _with_exact_sums(path, Path(folder), answers) if precision == "bf16" else str(path)
            return _core().compile_model(model, "CPU", options)
    except (OSError, RuntimeError) as error:
        raise ArtifactError(
            f"OpenVINO {version('openvino')} cannot load {path}: {first_line(error)}. If the file is missing, run the "
            "command again to rebuild it. If the temporary folder is full (bf16 writes the weights there), free disk "
            "space or set TMPDIR. Otherwise update openvino, or use another --engine."
        ) from error


def _with_exact_sums(path: Path, folder: Path, answers: bool) -> Any:
    """Read a graph and mark the operators that stay in fp32 when it is compiled for bf16.

    These are the residual sums, the norms and the product with the label words. They cost little, and rounding hurts
    them most: logits in bf16 would have three digits. Tensors with four axes belong to attention and are not marked.
    OpenVINO reads such marks only from its own file format, so the graph is converted to it first.
    """
    import openvino

    structure, weights = folder / "graph.xml", folder / "graph.bin"
    openvino.serialize(_core().read_model(str(path)), structure, weights)
    tree = ElementTree.parse(structure)
    layers = list(tree.iter("layer"))
    exact = [layer for layer in layers if layer.get("type") in SUMS and len(layer.findall("output/port/dim")) <= 3]
    if answers:
        exact.append([layer for layer in layers if layer.get("type") == "MatMul"][-1])
    for layer in exact:
        marks = layer.find("rt_info")
        if marks is None:
            marks = ElementTree.Element("rt_info")
            layer.insert(len(layer.findall("data")), marks)
        ElementTree.SubElement(marks, "attribute", name="precise", version="0")
    return _core().read_model(model=ElementTree.tostring(tree.getroot()), weights=weights.read_bytes())


@cache
def _core() -> Any:
    """Return the process-wide OpenVINO core."""
    import openvino

    return openvino.Core()


def _shared(tensor: Tensor) -> Any:
    """Return an OpenVINO tensor that shares the memory."""
    import openvino

    return openvino.Tensor(tensor.numpy(), shared_memory=True)
