"""Build TensorRT plans from ONNX graphs, with either of TensorRT's packages (``bindings.py``)."""

from __future__ import annotations

import logging
import shutil
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import onnx
from tqdm import tqdm

from . import tensorrt_rtx
from .bindings import CLASSIC, RTX, Capability, Gpu, chosen, package_for
from .cache import cache_folder, entry, file_digest, write_bytes
from .errors import DeviceError, MissingExtraError

if TYPE_CHECKING:
    from typing import SupportsInt

    import tensorrt as trt
else:
    from .bindings import trt

PLAN = "plan.engine"
"""The name of a plan's file in its cache entry."""
LENGTHS = "key_value_lengths"
"""A plan's input [P * N] int32: the tokens of each text. It replaces a mask that hides padding."""
WORKSPACE_BYTES = 4 << 30
"""The scratch memory of one operator; part of a plan's key, so it is the same on every GPU."""
LEVELS = (logging.WARNING, logging.WARNING, logging.INFO, logging.DEBUG)
"""Log levels for TensorRT's internal error, error, warning and information. More verbose messages are dropped."""
IGNORED = "has Int64 binding"
"""Part of a warning about int64 inputs, which are intended."""

T = TypeVar("T")
Shape = tuple[int, ...]
Profile = Mapping[str, tuple[Shape, Shape, Shape]]
"""For each input by name: the least shape, the one to tune for, and the largest."""

logger = logging.getLogger(__name__)

_errors: deque[str] = deque(maxlen=20)


def plan_from_onnx(path: Path, profile: Profile, gpu: Gpu) -> Path:
    """Return the plan for a graph and its shapes, from the cache or newly built.

    Args:
        path: the graph; the plan computes in its number formats.
        profile: shapes of all inputs. If LENGTHS is one of them, attention uses lengths instead of the graph's masks.
        gpu: the target. TensorRT builds on that GPU itself; TensorRT for RTX builds on any machine, for all GPUs of
            that compute capability.

    Raises:
        DeviceError: if TensorRT cannot read the graph or build a plan for it.
    """
    key = {
        "plan of": _content(path),
        "profile": {name: [list(shape) for shape in shapes] for name, shapes in profile.items()},
        "gpu": gpu.name if chosen() is CLASSIC else "any",
        "compute capability": list(gpu.capability),
        "versions": {"tensorrt": tensorrt_version(), "bbt-fast": version("bbt-fast")},
        "flags": {"workspace": WORKSPACE_BYTES, "tf32": False, "decomposable": True},
    }
    return entry(key, lambda folder: write_bytes(folder / PLAN, _build(path, profile, gpu))) / PLAN


def discard(plan: Path) -> None:
    """Remove a plan from the cache."""
    shutil.rmtree(plan.parent, ignore_errors=True)  # another process may do the same


def tensorrt_fault(capability: Capability) -> str | None:
    """Return why the package for a GPU cannot be used (missing, broken, too old), or None if it can."""
    try:
        package = package_for(capability)
        found = import_module(package.module)
    except MissingExtraError as error:
        return str(error)
    except (ImportError, OSError) as error:
        return f"{package.title} cannot be imported ({error}); reinstall it: `{package.install} --force-reinstall`"
    if not hasattr(getattr(found, "IAttention", None), "key_value_lengths"):
        return f"{package.title} {found.__version__} has no attention by lengths; upgrade it: `{package.install} -U`"
    return None


def tensorrt_version() -> str:
    """Return the selected package's version."""
    return f"{'rtx-' if chosen() is RTX else ''}{trt.__version__}"


def tensorrt_errors() -> str:
    """Return and clear the errors that TensorRT has reported since the last call."""
    text = "\n".join(_errors) or "TensorRT gave no reason"
    _errors.clear()
    return text.replace("OutOfMemory", "out of memory")  # the text that is_out_of_memory() looks for


def start(kind: Callable[[trt.ILogger], T]) -> T:
    """Create one of TensorRT's root objects.

    Raises:
        DeviceError: if that fails, for example because the driver is too old.
    """
    try:
        return kind(tensorrt_logger())
    except TypeError as error:  # the bindings raise nothing more specific
        raise DeviceError(
            f"TensorRT {tensorrt_version()} does not start: {tensorrt_errors()}. Update the driver (`nvidia-smi` shows "
            "its version), or use --engine ort."
        ) from error


def tensorrt_logger() -> trt.ILogger:
    """Return the process-wide logger of the selected package."""
    return _logger(chosen().module)


@cache
def _logger(module: str) -> trt.ILogger:
    del module  # it is only the cache's key

    class Logger(trt.ILogger):
        """Forwards messages to Python's logging, and collects errors for the next exception."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            level = int(severity)
            if level <= int(trt.ILogger.Severity.ERROR):
                _errors.append(msg)
            if level < len(LEVELS) and IGNORED not in msg:
                logger.log(LEVELS[level], "TensorRT: %s", msg)

    return Logger()


def _build(path: Path, profile: Profile, gpu: Gpu) -> bytes:
    """Parse a graph into a strongly typed network and build its plan on the current device."""
    _errors.clear()
    builder = start(trt.Builder)
    network = _network(builder, path, LENGTHS in profile)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    config.clear_flag(trt.BuilderFlag.TF32)  # fp32 is fp32
    shapes = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        name = network.get_input(index).name
        least, best, most = (trt.Dims(shape) for shape in profile[name])
        shapes.set_shape(name, least, best, most)
    if config.add_optimization_profile(shapes) < 0:
        raise DeviceError(f"TensorRT does not accept the shapes {dict(profile)} for {path}: {tensorrt_errors()}")
    timings = None
    if chosen() is RTX:
        tensorrt_rtx.set_target(config, gpu.capability)
    else:
        timings = _load_timings(config, gpu)
    with tqdm(desc=f"building {path.stem}", total=0, unit="step", disable=None, leave=False) as bar:
        config.progress_monitor = _monitor(bar)
        plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise DeviceError(f"TensorRT {tensorrt_version()} cannot build a plan for {path}: {tensorrt_errors()}")
    _errors.clear()  # from kernels that the builder tried in vain
    if timings is not None:
        write_bytes(_timings_path(gpu), bytes(timings.serialize()))
    return bytes(plan)


def _network(builder: trt.Builder, path: Path, by_lengths: bool) -> trt.INetworkDefinition:
    """Parse a graph into a strongly typed network."""
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, tensorrt_logger())
    if not parser.parse(_readable(path, by_lengths), str(path)):
        raise DeviceError(
            f"TensorRT {tensorrt_version()} cannot read {path}:\n{_parser_errors(parser)}\nUpdate TensorRT, or use "
            "--engine ort."
        )
    if by_lengths:
        _attend_by_lengths(network)
    return network


def _readable(path: Path, by_lengths: bool) -> bytes:
    """Return a graph whose attention may run as several kernels: TensorRT has no fused kernel for some cases, as fp32.

    Without this attribute of its parser (onnx-tensorrt, docs/TRT_custom_ops.md) such a build fails.
    """
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        if node.op_type == "Attention":
            node.attribute.append(onnx.helper.make_attribute("TRT_decomposable", 1))
            if by_lengths:
                del node.input[3:]
    content: bytes = model.SerializeToString()
    return content


def _attend_by_lengths(network: trt.INetworkDefinition) -> None:
    """Add the lengths as an input of all attention layers."""
    lengths = network.add_input(LENGTHS, trt.DataType.INT32, trt.Dims((-1,)))
    for attention in attentions(network):
        attention.key_value_lengths = lengths


def attentions(network: trt.INetworkDefinition) -> Iterator[trt.IAttention]:
    """Yield the attention layers of a network that were not decomposed into products and a softmax."""
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer  # the bindings return every layer as an ILayer
            yield cast("trt.IAttentionInputLayer", layer).attention


def _content(path: Path) -> list[str]:
    """Return the digests of a graph's file and of its external weights."""
    return [file_digest(file) for file in (path, path.with_name(f"{path.name}.data")) if file.exists()]


def _parser_errors(parser: trt.OnnxParser) -> str:
    """Return the parser's errors, one per line, each with its node."""
    lines = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        where = f"node {error.node()} {error.node_name()!r} ({error.node_operator()})"
        source = f"{error.file()}:{error.line()} in {error.func()}"
        lines.append("\n  in function ".join([f"{where}: {error.desc()} [{source}]", *error.local_function_stack()]))
    return "\n".join(lines) or tensorrt_errors()


def _load_timings(config: trt.IBuilderConfig, gpu: Gpu) -> trt.ITimingCache:
    """Load the kernel timings of earlier builds on this GPU, so that equal layers build in seconds."""
    path = _timings_path(gpu)
    for known in [path.read_bytes(), b""] if path.exists() else [b""]:
        timings = config.create_timing_cache(known)
        if timings is not None and config.set_timing_cache(timings, False):
            return timings
        logger.warning("TensorRT does not accept the timings in %s (%s): measuring again", path, tensorrt_errors())
    raise DeviceError(
        "TensorRT does not accept an empty timing cache. Reinstall it: `pip install --force-reinstall tensorrt`."
    )


def _timings_path(gpu: Gpu) -> Path:
    """Return the file of kernel timings, beside the graph cache's entries."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    return cache_folder() / f"timings-{tensorrt_version()}-{gpu}.cache"


def _monitor(bar: tqdm[Any]) -> trt.IProgressMonitor:
    """Return a monitor that advances a progress bar with each step of each phase."""
    lock = threading.Lock()

    class Monitor(trt.IProgressMonitor):
        """TensorRT calls it from its own threads."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: SupportsInt) -> None:
            with lock:
                bar.total = (bar.total or 0) + int(num_steps)
                bar.refresh()

        def step_complete(self, phase_name: str, step: SupportsInt) -> bool:
            with lock:
                bar.update()
            return True

        def phase_finish(self, phase_name: str) -> None:
            return None

    return Monitor()
