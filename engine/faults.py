"""An engine that fails in the middle of a run: it is asked once more in smaller chunks, then the failure is said."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from ..export.errors import ArtifactError, DeviceError, NumericsError, ParityError

OUT_OF_MEMORY = ("out of memory", "failed to allocate", "bad_alloc", "can't allocate memory")
"""What the runtimes call it, in lower case."""

logger = logging.getLogger(__name__)


class MemoryShortError(DeviceError):
    """The device cannot hold one candidate, so smaller chunks are no way out."""


HOPELESS = (ArtifactError, ParityError, MemoryShortError)
"""What is said at once: smaller chunks would not mend it."""


class Fallible(Protocol):
    """What is asked of an engine here."""

    name: ClassVar[str]
    precision: str
    device: torch.device
    tokens_per_call: int


def persist(engine: Fallible, work: Callable[[], Tensor], tokens: int) -> Tensor:
    """Do a generation's work; if the engine fails, once more with half as many candidates at a time.

    The size of a chunk changes no result. What failed by chance, or in one of a kernel's shapes only, is mended by
    this; what fails again is a fault of the model, the precision or the device.

    Args:
        engine: the one that works.
        work: returns the answer; starts afresh on each call.
        tokens: how many the whole population has, so that half of them is a smaller chunk.

    Raises:
        NumericsError: if an answer is NaN or infinite, twice.
        DeviceError: if the engine fails in any other way, twice, or has not enough memory for one candidate.
    """
    try:
        return work()
    except HOPELESS:
        raise
    except (RuntimeError, MemoryError) as error:
        logger.warning(
            "%s failed: trying once more with fewer candidates at a time (%s)", engine.name, first_line(error)
        )
    usual, engine.tokens_per_call = engine.tokens_per_call, max(1, min(engine.tokens_per_call, tokens) // 2)
    try:
        release_memory()
        return work()
    except (NumericsError, *HOPELESS):
        engine.tokens_per_call = usual
        raise
    except (RuntimeError, MemoryError) as error:
        engine.tokens_per_call = usual
        raise DeviceError(
            f"{engine.name} in {engine.precision} failed on {engine.device}, and again with fewer candidates at a "
            f"time: {first_line(error)}. A run keeps every generation that it finished: the same command, started "
            "again, continues from there. If that fails too, start in another --output_dir with --engine torch or "
            "--device cpu."
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether a runtime's error means that memory was short."""
    text = str(error).lower()
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(sign in text for sign in OUT_OF_MEMORY)


def release_memory() -> None:
    """Free what only a caught error's traceback holds, and give what PyTorch keeps for later back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its type."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
