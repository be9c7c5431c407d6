"""The API that only TensorRT for RTX has: build targets, plan validity and runtime caches."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .bindings import Capability
from .cache import write_bytes
from .errors import DeviceError

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    import tensorrt_rtx_bindings as rtx

RUNTIME_CACHE = "runtime.cache"
"""The file beside a plan with the kernels that were compiled for it on the card; the next start reuses them."""


def set_target(config: rtx.IBuilderConfig, capability: Capability) -> None:
    """Build for a compute capability; no such GPU is needed.

    Raises:
        DeviceError: if this version does not support it.
    """
    import tensorrt_rtx_bindings as rtx

    target = getattr(rtx.ComputeCapability, f"SM{capability[0]}{capability[1]}", None)
    config.num_compute_capabilities = 1
    if target is None or not config.set_compute_capability(target, 0):
        raise DeviceError(
            f"TensorRT for RTX {rtx.__version__} does not support compute capability {capability[0]}.{capability[1]}. "
            "Upgrade it with `pip install -U 'bbt-fast[trt-rtx]'`, or use --engine ort."
        )


def fault(runtime: Any, plan: bytes) -> str | None:
    """Return why a plan cannot run on the current device, or None if it can.

    Args:
        runtime: the process's runtime.
        plan: the plan's bytes.
    """
    import tensorrt_rtx_bindings as rtx

    validity, found = runtime.get_engine_validity(plan)
    if validity == rtx.EngineValidity.VALID:
        return None
    reasons = [
        name.lower().replace("_", " ")
        for name, value in rtx.EngineInvalidityDiagnostics.__members__.items()
        if int(value) & int(found)
    ]
    return ", ".join(reasons) or "it is not valid on this device"


def create_context(engine: Any, path: Path) -> tuple[Any, Any]:
    """Return an execution context without its own memory, and its runtime cache.

    Args:
        engine: a loaded plan.
        path: the plan's file.
    """
    import tensorrt_rtx_bindings as rtx

    config: rtx.IRuntimeConfig = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(rtx.ExecutionContextAllocationStrategy.USER_MANAGED)
    # The engine records generations as CUDA graphs, so kernels must not be changed or compiled later.
    config.cuda_graph_strategy = rtx.CudaGraphStrategy.DISABLED
    config.dynamic_shapes_kernel_specialization_strategy = rtx.DynamicShapesKernelSpecializationStrategy.EAGER
    cache = config.create_runtime_cache()
    kept = path.with_name(RUNTIME_CACHE)
    if kept.exists():
        cache.deserialize(kept.read_bytes())
    config.set_runtime_cache(cache)
    return engine.create_execution_context(config), cache


def save_runtime_cache(cache: Any, path: Path) -> None:
    """Save the kernels that were compiled for a plan beside it. A failure only means that they are compiled again."""
    content = bytes(cache.serialize())
    kept = path.with_name(RUNTIME_CACHE)
    try:
        if not kept.exists() or kept.read_bytes() != content:
            write_bytes(kept, content)
    except OSError as error:
        logger.warning("cannot write %s (%s): the next run compiles its kernels again", kept, error.strerror or error)
