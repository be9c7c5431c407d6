"""Engine failures during a run: retry once with fewer candidates per call, then raise."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Collection
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from ..export.errors import ArtifactError, DeviceError, NumericsError, ParityError, first_line

OUT_OF_MEMORY = ("out of memory", "failed to allocate", "bad_alloc", "can't allocate memory")
"""The runtimes' texts for it, in lower case."""

logger = logging.getLogger(__name__)


class MemoryShortError(DeviceError):
    """The device has not enough memory for one candidate, so smaller chunks do not help."""


class WorkerLostError(DeviceError):
    """A process of a cluster died, or its node did."""


HOPELESS = (ArtifactError, ParityError, MemoryShortError)
"""Errors that smaller chunks cannot fix: they are raised without a retry."""


class Fallible(Protocol):
    """The attributes of an engine that this module needs."""

    name: ClassVar[str]
    precision: str
    device: torch.device
    tokens_per_call: int


def persist(engine: Fallible, work: Callable[[], Tensor], tokens: int | None) -> Tensor:
    """Run a generation's work; after a failure, retry once with half as many candidates per call.

    The chunk size does not change results. The retry fixes random failures and failures of single kernel shapes, and
    the smaller size stays; a second failure points to the model, the precision or the device.

    Args:
        engine: the engine that does the work.
        work: returns the answer; each call starts from the beginning.
        tokens: the tokens of the largest call, so that half of them is a smaller chunk; None for work without chunks.

    Raises:
        NumericsError: if an answer is NaN or infinite, twice.
        DeviceError: if the engine fails twice in any other way, or has not enough memory for one candidate.
    """
    try:
        return work()
    except HOPELESS:
        raise
    except (RuntimeError, MemoryError) as error:
        logger.warning(
            "%s failed: trying once more with fewer candidates at a time (%s)", engine.name, first_line(error)
        )
    usual = engine.tokens_per_call
    if tokens is not None:
        engine.tokens_per_call = max(1, min(usual, tokens) // 2)
    try:
        release_memory()
        return work()
    except (RuntimeError, MemoryError) as error:
        engine.tokens_per_call = usual
        if isinstance(error, (NumericsError, *HOPELESS)):
            raise
        raise DeviceError(
            f"{engine.name} in {engine.precision} failed on {engine.device}, and again with fewer candidates at a "
            f"time: {first_line(error)}. Every finished generation is saved: run the same command again to resume. If "
            "that fails too, start in another --output_dir with --engine torch or --device cpu."
        ) from error


def not_finite(who: str, precision: str, offered: Collection[str]) -> NumericsError:
    """Return the error of an answer that is NaN or infinite.

    Args:
        who: what returned them.
        precision: in which it computed.
        offered: the precisions that it could compute in.
    """
    wider = [one for one in (("bf16", "fp32") if precision == "fp16" else ("fp32",)) if one in offered]
    other = "" if precision in wider or not wider else f"--precision {' or '.join(wider)}, or "
    return NumericsError(f"{who} in {precision} returned NaN or infinity. Try {other}a smaller --sigma.")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether a runtime's error means that it ran out of memory."""
    text = str(error).lower()
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(sign in text for sign in OUT_OF_MEMORY)


def release_memory() -> None:
    """Free the objects of a caught error's traceback, and return PyTorch's cached memory to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
