"""Load and run TensorRT plans, with either of TensorRT's packages (``export/bindings.py``)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from ..export import tensorrt_rtx
from ..export.bindings import RTX, chosen
from ..export.errors import ArtifactError, DeviceError
from ..export.tensorrt import Shape, start, tensorrt_errors

if TYPE_CHECKING:
    import tensorrt as trt
else:
    from ..export.bindings import trt

TORCH_TYPES = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "BOOL": torch.bool,
}
"""PyTorch's dtypes by TensorRT's names."""

ALIGNMENT = 256
"""TensorRT requires addresses that are multiples of this, in bytes."""


class Scratch:
    """Device memory for activations inside plans. All plans of an engine share it: they run one after another."""

    def __init__(self, device: torch.device) -> None:
        """Start without memory."""
        self.block = torch.empty(0, dtype=torch.uint8, device=device)

    def reserve(self, size: int) -> None:
        """Grow to at least this many bytes."""
        if self.block.numel() < size:
            self.block = torch.empty(size, dtype=torch.uint8, device=self.block.device)


class Plan:
    """A loaded plan with one execution context."""

    def __init__(self, path: Path, scratch: Scratch) -> None:
        """Load a plan; the current CUDA device must be the one that it was built for.

        Raises:
            ArtifactError: if TensorRT cannot load it.
            DeviceError: if the device has not enough memory.
        """
        engine = _runtime(chosen().module).deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            reason = tensorrt_errors()
            if "out of memory" in reason:
                raise DeviceError(f"TensorRT cannot load the plan {path}: {reason}. Close other programs on the GPU.")
            raise ArtifactError(f"TensorRT cannot load the plan {path}: {reason}. Delete {path.parent}.")
        self._runtime_cache = None
        if chosen() is RTX:
            made, self._runtime_cache = tensorrt_rtx.create_context(engine, path)
            context = cast("trt.IExecutionContext | None", made)
        else:
            context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None:
            raise DeviceError(f"TensorRT cannot prepare the plan {path}: {tensorrt_errors()}")
        self.path = path
        self._engine, self._context, self._scratch = engine, context, scratch
        self._scratch_size = engine.device_memory_size_v2
        scratch.reserve(self._scratch_size)
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        self._types = {name: TORCH_TYPES[engine.get_tensor_dtype(name).name] for name in names}
        self._inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        (self._output,) = set(names) - set(self._inputs)
        self._shapes: list[Shape] = []
        self._block = -1

    def run(self, inputs: Mapping[str, Tensor], output: Tensor, stream: int) -> None:
        """Queue one inference on PyTorch's current stream; the tensors must live until it has run.

        Args:
            inputs: contiguous tensors on the plan's device, by name; the plan ignores other names.
            output: contiguous, with the shape and dtype of the plan's output.
            stream: that stream; not CUDA's default stream.

        Raises:
            DeviceError: if TensorRT reports an error.
        """
        taken = {name: _aligned(inputs[name]) for name in self._inputs}
        written = _aligned(output)
        shapes = [tuple(tensor.shape) for tensor in taken.values()]
        if shapes != self._shapes:
            self._set_shapes(dict(zip(taken, shapes, strict=True)), tuple(output.shape))
            self._shapes = shapes
        if self._block != self._scratch.block.data_ptr():
            self._block = self._scratch.block.data_ptr()
            self._context.set_device_memory(self._block, self._scratch.block.numel())
        for name, tensor in (*taken.items(), (self._output, written)):
            if tensor.dtype != self._types[name] or not tensor.is_contiguous():
                raise DeviceError(f"{self.path}: {name} must be contiguous {self._types[name]}, not {tensor.dtype}.")
            self._require(self._context.set_tensor_address(name, tensor.data_ptr()), f"take the address of {name}")
        self._require(self._context.execute_async_v3(stream), "run")
        if self._runtime_cache is not None:
            tensorrt_rtx.save_runtime_cache(self._runtime_cache, self.path)
            self._runtime_cache = None
        if written is not output:
            output.copy_(written)

    def describe(self) -> str:
        """Return the plan's kernels and layers, one per line."""
        inspector = self._engine.create_engine_inspector()
        text: str = inspector.get_engine_information(trt.LayerInformationFormat.ONELINE)
        return text

    def _set_shapes(self, inputs: Mapping[str, Shape], output: Shape) -> None:
        """Set the input shapes, and check the output shape."""
        for name, shape in inputs.items():
            self._require(self._context.set_input_shape(name, shape), f"take {name} of shape {list(shape)}")
        missing = self._context.infer_shapes()
        self._require(not missing, f"work out shapes without {', '.join(missing)}")
        found = self._context.get_tensor_shape(self._output)
        sizes = tuple(found[axis] for axis in range(len(found)))
        self._require(sizes == output, f"return {list(output)}, but {list(sizes)},")

    def _require(self, done: bool, what: str) -> None:
        """Raise TensorRT's error if a step failed."""
        if not done:
            self._shapes = []
            raise DeviceError(f"TensorRT could not {what} in the plan {self.path}: {tensorrt_errors()}")


def _aligned(tensor: Tensor) -> Tensor:
    """Return a tensor, or an aligned copy of it: a slice may begin at any address."""
    return tensor.clone() if tensor.data_ptr() % ALIGNMENT else tensor


def plan_fault(path: Path) -> str | None:
    """Return why a plan's file cannot run on the current device, or None if no reason is known."""
    return tensorrt_rtx.fault(_runtime(chosen().module), path.read_bytes()) if chosen() is RTX else None


@cache
def _runtime(module: str) -> trt.Runtime:
    """Return the process-wide runtime of the selected package."""
    del module  # it is only the cache's key
    return start(trt.Runtime)
