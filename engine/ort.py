"""The ONNX Runtime engine, on the CPU and on CUDA."""

from __future__ import annotations

import ctypes
import logging
import os
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnxruntime as ort
import torch
from onnxruntime.capi import onnxruntime_pybind11_state
from torch import Tensor

from ..export.cache import digest
from ..export.errors import ArtifactError, DeviceError, first_line
from ..export.model import Encoded, StagedModel
from .base import Engine
from .cuda import Queue
from .onnx_files import OnnxFiles, onnx_files
from .onnx_runner import OnnxRunner
from .ort_calls import Calls
from .replay import Replay
from .runner import Runner
from .savings import Savings

NUMPY_TYPES = {
    torch.float32: np.float32,
    torch.float16: np.float16,
    torch.int32: np.int32,
    torch.int64: np.int64,
    torch.bool: np.bool_,
}

SLOW_ON_CPU = ["SkipLayerNormFusion"]
"""An optimization that does not pay on a CPU: the fused kernel is slower than separate Add and LayerNormalization.
Without it a generation takes 9 % less time at hidden size 384 and 5 % less at 768 (measured on AVX-512, one thread)."""

ORT_ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    *(
        kind
        for kind in vars(onnxruntime_pybind11_state).values()
        if isinstance(kind, type) and issubclass(kind, Exception)
    ),
)
"""The errors of ONNX Runtime; most have no common base but Exception."""

EXACT = {"use_tf32": "0", "enable_skip_layer_norm_strict_mode": "1"}
"""Options of the CUDA provider: fp32 products without TF32, and LayerNorm sums of fp16 in fp32."""

GEMM_OPTIONS = "ORT_CUDA_GEMM_OPTIONS"
"""The environment variable that selects fp16 (1) or fp32 (0) sums in the CUDA provider's fp16 products."""

logger = logging.getLogger(__name__)


class OrtRunner(OnnxRunner):
    """One ONNX Runtime session per stage; tensors are bound by address."""

    def __init__(
        self, files: OnnxFiles, staged: StagedModel, encoded: Encoded, device: torch.device, calls: Calls, graphs: bool
    ) -> None:
        """Load the graphs; with ``graphs`` the sessions can record and replay CUDA graphs."""
        super().__init__(files, staged, encoded)
        self._calls, self._graphs = calls, graphs
        stream = None if calls.queue is None else calls.queue.handle
        self._sessions = [_session(path, device, stream=stream, graphs=graphs) for path in files.paths]

    def _output(self, stage: int, like: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return self._calls.output(stage, like, shape, dtype)

    def _infer(self, stage: int, inputs: dict[str, Tensor], output: Tensor) -> None:
        session = self._sessions[stage]
        binding = session.io_binding()
        for name, tensor in inputs.items():
            binding.bind_input(name, *_place(tensor), tuple(tensor.shape), tensor.data_ptr())
        answer = session.get_outputs()[0]
        rows = output.flatten(0, 1) if len(answer.shape) < output.ndim else output  # a fused graph's [P * N, S, H]
        binding.bind_output(answer.name, *_place(rows), tuple(rows.shape), rows.data_ptr())
        tensors = [*inputs.values(), output]
        bound = [id(session), *((tensor.data_ptr(), *tensor.shape) for tensor in tensors)]
        with self._calls.use():
            self._calls.make(lambda number: self._run(stage, binding, number), bound, tensors)

    def _run(self, stage: int, binding: ort.IOBinding, number: int) -> None:
        options = ort.RunOptions()
        if self._calls.queue is not None:  # the streams synchronize on the device, without the host
            options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        if self._graphs:
            options.add_run_config_entry("gpu_graph_id", str(number))
        try:
            self._sessions[stage].run_with_iobinding(binding, options)
        except ORT_ERRORS as error:
            raise DeviceError(f"ONNX Runtime cannot run {self.files.paths[stage]}: {error}") from error


class OrtEngine(Engine):
    """ONNX Runtime. On a CPU each call runs on its caller's thread, so no operator waits for other threads."""

    name = "ort"
    one_thread_calls = True
    cpu_tokens = 640
    shares_prefix = True
    length_step: ClassVar[dict[str, int]] = {"cuda": 4}
    """The CUDA provider's memory-efficient kernel requires it of masks (its core/providers/cuda/llm/attention.cc)."""
    packing_kernels: ClassVar[dict[str, str]] = {"cpu": "padded", "cuda": "contrib"}
    precisions: ClassVar[dict[str, tuple[str, ...]]] = {"cpu": ("fp32", "fp16"), "cuda": ("fp16", "fp32", "fp16-fast")}

    def __init__(self, staged: StagedModel, precision: str, device: torch.device, savings: Savings) -> None:
        """Take a staged model; load_engine() validates the other arguments."""
        super().__init__(staged, precision, device, savings)
        self.calls = Calls(Queue(device) if device.type == "cuda" else None)
        if savings.graph and self.calls.queue is not None:
            self.replay = Replay(self.calls, str(self.calls.queue.gpu))

    @classmethod
    def cuda_fault(cls) -> str | None:
        """Return why ONNX Runtime cannot run on CUDA here, or None if it can."""
        if "CUDAExecutionProvider" in ort.get_available_providers():
            return None
        return (
            f"this build of ONNX Runtime ({ort.__version__}) has no CUDA provider; install exactly one package: "
            "`pip uninstall onnxruntime onnxruntime-gpu`, then `pip install onnxruntime-gpu`"
        )

    def _load(self, encoded: Encoded) -> OrtRunner:
        if self.device.type == "cuda":
            _settle_sums("1" if self.precision == "fp16-fast" else "0")
        files = onnx_files(self.staged, encoded, self.dtype, self.onnx_model_path, fused=self.savings.fusion)
        if self.replay is not None:  # a new session may allocate memory that recorded graphs use
            self.replay.forget()
            self.calls.forget()
        try:
            return OrtRunner(files, self.staged, encoded, self.device, self.calls, graphs=self.replay is not None)
        except DeviceError as error:
            if self.replay is None:
                raise
            self.replay = None
            logger.warning("ONNX Runtime cannot record CUDA graphs: continuing without (%s)", first_line(error))
            return self._load(encoded)

    def _parity_record(self, runner: Runner) -> Path | None:
        assert isinstance(runner, OrtRunner)
        return runner.files.parity_record(_runtime(self.device, self.precision))


def optimize_onnx(source: Path, target: Path, device: torch.device) -> None:
    """Write a graph as ONNX Runtime optimizes it for a device: operators fused, constants folded."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(target)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    _session(source, device, options)


def run_file(path: Path, inputs: dict[str, np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
    """Run an ONNX file once on the CPU with ONNX Runtime's default options, and return its outputs.

    Raises:
        RuntimeError: if that fails.
    """
    try:
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        outputs: list[np.ndarray[Any, Any]] = session.run(None, inputs)
    except Exception as error:  # ONNX Runtime's types have no base of their own
        raise RuntimeError(str(error).strip().splitlines()[0]) from error
    return outputs


def missing_library() -> str:
    """Return why ONNX Runtime's CUDA provider does not load: the dynamic linker's message."""
    (provider,) = (Path(ort.__file__).parent / "capi").glob("*onnxruntime_providers_cuda.*")
    try:
        ctypes.CDLL(str(provider))
    except OSError as error:
        return str(error)
    return "its libraries load, but it finds no usable device (check the driver's version with `nvidia-smi`)"


def _session(
    path: Path,
    device: torch.device,
    options: ort.SessionOptions | None = None,
    stream: int | None = None,
    graphs: bool = False,
) -> ort.InferenceSession:
    _start(device)
    options = options or ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.use_env_allocators", "1")
    providers: list[str | tuple[str, dict[str, str]]] = ["CPUExecutionProvider"]
    if device.type == "cuda":
        cuda = {"device_id": str(device.index or 0), **EXACT}
        if stream is not None:
            cuda["user_compute_stream"] = str(stream)
        if graphs:
            cuda["enable_cuda_graph"] = "1"
            options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
        providers.insert(0, ("CUDAExecutionProvider", cuda))
    slow = SLOW_ON_CPU if device.type == "cpu" else []
    try:
        session = ort.InferenceSession(
            str(path), options, providers=providers, disabled_optimizers=slow, enable_fallback=0
        )
    except ORT_ERRORS as error:
        if device.type == "cuda":
            raise DeviceError(
                f"ONNX Runtime {ort.__version__} cannot load {path} on {device}: {first_line(error)}. Close other "
                "programs on the GPU, update onnxruntime-gpu, or use another --engine or --device cpu."
            ) from error
        raise ArtifactError(
            f"ONNX Runtime {ort.__version__} cannot load {path}: {first_line(error)}. If the file is missing, run the "
            "command again to rebuild it. Otherwise update onnxruntime, or use another --engine."
        ) from error
    if device.type == "cuda" and "CUDAExecutionProvider" not in session.get_providers():
        raise DeviceError(
            f"ONNX Runtime's CUDA provider did not load: {missing_library()}. onnxruntime-gpu {ort.__version__} is "
            f"built for CUDA {ort.cuda_version}: `pip install onnxruntime-gpu[cuda,cudnn]`, or use --device cpu."
        )
    return session


@cache
def _start(device: torch.device) -> None:
    """Initialize ONNX Runtime for a device, once per process, with one allocator for all sessions."""
    ort.set_default_logger_severity(3)
    if device.type != "cuda":
        ort.create_and_register_allocator(_memory("Cpu"), None)
        return
    ort.preload_dlls()
    memory = _memory("Cuda", device.index or 0)
    options = {"device_id": str(device.index or 0)}
    try:
        arena = ort.OrtArenaCfg(
            {"arena_extend_strategy": 1}
        )  # grow by the requested size, not to the next power of two
        ort.create_and_register_allocator_v2("CUDAExecutionProvider", memory, options, arena)
    except RuntimeError as error:
        logger.warning("ONNX Runtime's sessions cannot share GPU memory, so they need more of it: %s", error)


def _memory(name: str, index: int = 0) -> ort.OrtMemoryInfo:
    return ort.OrtMemoryInfo(name, ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, index, ort.OrtMemType.DEFAULT)


def _place(tensor: Tensor) -> tuple[str, int, type]:
    return tensor.device.type, tensor.device.index or 0, NUMPY_TYPES[tensor.dtype]


_sums: list[str] = []
"""The value of GEMM_OPTIONS in this process, once a CUDA session exists."""


def _settle_sums(wanted: str) -> None:
    """Let ONNX Runtime sum fp16 products in fp16 ("1") or fp32 ("0").

    Raises:
        DeviceError: if this process already uses the other value.
    """
    if not _sums:
        os.environ[GEMM_OPTIONS] = wanted
        _sums.append(wanted)
    if _sums[0] != wanted:
        raise DeviceError(
            f"ONNX Runtime reads {GEMM_OPTIONS} once per process, and this one already has sessions with "
            f"{GEMM_OPTIONS}={_sums[0]}. Use fp16 and fp16-fast in separate processes, or --engine torch."
        )


def _runtime(device: torch.device, precision: str) -> str:
    """Return what determines a graph's results besides the graph itself, as part of a file name."""
    where = torch.cuda.get_device_name(device).replace(" ", "_") if device.type == "cuda" else "cpu"
    exact = f"-{digest(EXACT)[:8]}" if device.type == "cuda" else ""
    fast = "-fast" if precision == "fp16-fast" else ""
    return f"ort-{ort.__version__}-{where}{exact}{fast}"
