"""The table of engines, and load_engine()."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ..export.bindings import CLASSIC, PACKAGES, RTX
from ..export.errors import DeviceError, MissingExtraError, UsageError
from ..export.model import Cuts, StagedModel, load_model
from ..export.precision import precision_of
from ..export.prompts import Mode
from .automatic import FASTEST, Choice, hardware_fault
from .base import Engine
from .savings import Savings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """An engine's module, class and dependencies."""

    module: str
    class_name: str
    requires: tuple[str, ...]
    """The packages that it can use; its module is imported only if one of them is installed."""
    install: str

    @property
    def installed(self) -> bool:
        """Whether one of the packages is installed."""
        return any(find_spec(package) for package in self.requires)


ENGINES: dict[str, Row] = {
    "torch": Row("pytorch", "TorchEngine", ("torch",), "pip install torch"),
    "ort": Row("ort", "OrtEngine", ("onnxruntime",), "pip install onnxruntime-gpu"),
    "openvino": Row("openvino", "OpenvinoEngine", ("openvino",), "pip install 'bbt-fast[openvino]'"),
    "trt": Row(
        "tensorrt",
        "TensorRtEngine",
        tuple(package.module for package in PACKAGES),
        f"{RTX.install}` for GeForce and RTX cards, `{CLASSIC.install}",
    ),
}


def load_engine(
    name: str,
    model: str | Path | PreTrainedModel,
    *,
    mode: Mode = "add",
    n_prompt_tokens: int = 50,
    cuts: Cuts = "input",
    precision: str = "auto",
    device: str = "auto",
    ablate: Iterable[str] = (),
    include: Iterable[str] = (),
    onnx_model_path: str | Path | None = None,
) -> Engine:
    """Load a model on an engine, build its graphs and run the parity gate on them.

    Args:
        name: a row of ENGINES, or "auto" for the fastest that is installed and passes the parity gate.
        model: a hub id, a folder, or a loaded `transformers` model (its attention is switched to SDPA).
        mode: "add" adds prompts to placeholder positions, "cat" puts them before the text.
        n_prompt_tokens: n.
        cuts: "input" for BBT, where prompts enter before layer 0 only; "layers" for BBTv2.
        precision: a row of PRECISIONS that the engine supports on the device, or "auto".
        device: "cpu", "cuda", "cuda:1", ... or "auto".
        ablate: names of savings to switch off (see Savings); for benchmarks.
        include: names of savings to switch on although they do not pay on the device; for tests and benchmarks.
        onnx_model_path: a file (cuts="input") or folder (cuts="layers") of graphs from
            scripts/export_and_optimize.py, which replace the cache's.

    Raises:
        UsageError: if a name is unknown or the engine does not support the precision.
        MissingExtraError: if the engine's package is not installed.
        DeviceError: if the device cannot be used.
        ParityError: if a graph does not reproduce PyTorch fp32.
        ArtifactError: if the graphs in ``onnx_model_path`` do not fit.
    """
    plans = _plans(name, precision, device)
    wishes = tuple(ablate), tuple(include)
    Savings.on("cpu", *wishes)
    loaded = load_model(model)
    for choice, place in plans:
        began, savings = time.perf_counter(), Savings.on(place.type, *wishes)
        staged = StagedModel(loaded.to(place), mode, n_prompt_tokens, cuts, answer_only=savings.answer_only)  # type: ignore[arg-type]
        try:
            engine = engine_class(choice.engine)(staged, choice.precision, place, savings)
            engine.onnx_model_path = None if onnx_model_path is None else Path(onnx_model_path)
            engine.check_parity()
        except (RuntimeError, MissingExtraError) as error:  # of the gate, the exporter or the runtime
            if choice is plans[-1][0] or onnx_model_path is not None:
                raise
            logger.info("engine auto is not %s: %s", choice, error)
            continue
        if name == "auto":
            logger.info("engine auto is %s: the fastest here that passes the parity gate", choice)
        logger.info("%s on %s is ready after %.1f s", choice, place, time.perf_counter() - began)
        return engine
    raise DeviceError(f"no engine can run in {precision} on {device} here. Run `bbt-fast doctor` to see the reasons.")


def prospects(precision: str = "auto", device: str = "auto") -> list[tuple[Choice, str | None]]:
    """Return the choices of "auto", fastest first, each with the reason why it cannot be used here, or None.

    Raises:
        UsageError: if the precision or the device is unknown.
        DeviceError: if the device cannot be used.
    """
    if precision != "auto":
        precision_of(precision)
    place = _device("torch", device)
    rows = [choice for choice in FASTEST[place.type] if precision in ("auto", choice.precision)]
    return [(choice, _fault(choice, place)) for choice in rows]


def _plans(name: str, precision: str, device: str) -> list[tuple[Choice, torch.device]]:
    """Return the choices to try in order; invalid arguments fail before any work."""
    if name == "auto":
        place = _device("torch", device)
        plans = []
        for choice, fault in prospects(precision, device):
            if fault is None:
                plans.append((choice, place))
            elif not plans:
                logger.info("engine auto is not %s: %s", choice, fault)
        return plans
    kind = engine_class(name)
    place = _device(name, device)
    if precision == "auto":
        offered = kind.precisions[place.type]
        precision = next((one for one in offered if _precision_fault(Choice(name, one), place) is None), offered[0])
    precision_of(precision)
    if precision not in kind.precisions[place.type]:
        raise UsageError(
            f"engine {name!r} cannot compute in {precision} on {place.type}. Give one of these with --precision: "
            f"{', '.join(kind.precisions[place.type])}."
        )
    choice = Choice(name, precision)
    if fault := kind.precision_fault(precision, place):
        raise DeviceError(f"engine {name!r} cannot compute in {precision} here: {fault}. Give another --precision.")
    slow = hardware_fault(choice, place.type)
    if slow:
        logger.warning("%s: %s", choice, slow)
    return [(choice, place)]


def _fault(choice: Choice, place: torch.device) -> str | None:
    """Return why an engine cannot run here, or None."""
    try:
        _device(choice.engine, str(place))
    except (MissingExtraError, DeviceError, UsageError) as error:
        return str(error)
    return _precision_fault(choice, place)


def _precision_fault(choice: Choice, place: torch.device) -> str | None:
    """Return why an engine cannot compute in a precision here or why that is slow, or None."""
    return engine_class(choice.engine).precision_fault(choice.precision, place) or hardware_fault(choice, place.type)


def engine_class(name: str) -> type[Engine]:
    """Return the class of an engine.

    Raises:
        UsageError: if there is no such engine.
        MissingExtraError: if its package is not installed.
    """
    if name not in ENGINES:
        raise UsageError(f"there is no engine {name!r}. Choose one of: auto, {', '.join(ENGINES)}.")
    row = ENGINES[name]
    if not row.installed:
        needed = " or ".join(row.requires)
        raise MissingExtraError(f"engine {name!r} needs {needed}, which is not installed: `{row.install}`.")
    found: type[Engine] = getattr(import_module(f".{row.module}", __package__), row.class_name)
    return found


def _device(name: str, device: str) -> torch.device:
    """Return the device for an engine. A device that cannot be used is an error; there is no fallback."""
    kinds = engine_class(name).precisions
    fault = _cuda_fault(name) if "cuda" in kinds else None
    if device == "auto":
        if fault and "cpu" not in kinds:
            raise DeviceError(f"engine {name!r} runs on CUDA only, which cannot be used here: {fault}.")
        if fault and torch.cuda.is_available():
            logger.warning("engine %s runs on the CPU, although PyTorch sees a GPU: %s", name, fault)
        return torch.device("cpu") if fault or "cuda" not in kinds else _numbered(torch.device("cuda"))
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"device is {device!r}, but it must be auto, cpu, cuda or cuda:N.") from error
    if place.type not in kinds:
        known = " and ".join(kinds)
        raise UsageError(f"engine {name!r} runs on {known}, not on {device!r}. Give another --device or --engine.")
    if place.type == "cuda" and fault:
        raise DeviceError(f"--device {device} cannot be used: {fault}.")
    return _numbered(place) if place.type == "cuda" else place


def _numbered(place: torch.device) -> torch.device:
    """Return a CUDA device with its number: "cuda" without one is not equal to any tensor's device."""
    number = place.index if ":" in str(place) else torch.cuda.current_device()
    there = torch.cuda.device_count()
    if number >= there:
        raise DeviceError(f"--device {place} cannot be used: PyTorch sees {there} CUDA devices, cuda:0 the first.")
    return torch.device("cuda", number)


def _cuda_fault(name: str) -> str | None:
    """Return why an engine cannot run on CUDA here, or None if it can."""
    if not torch.cuda.is_available():
        build = "a CPU build" if torch.version.cuda is None else f"built for CUDA {torch.version.cuda}"
        return f"PyTorch sees no CUDA device (torch {torch.__version__}, {build}; check `nvidia-smi`)"
    return engine_class(name).cuda_fault()
