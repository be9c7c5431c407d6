"""The cost of a run with the model behind an API, as in Sun et al. 2022 (Table 3). docs/runs.md explains the figures.

A query is one candidate answered on all training examples: the user sends z, or the prompt, and receives the logits of
the label words. CMA-ES runs on the user's side, the model on the server's.
"""

from __future__ import annotations

import gc
import sys
import types
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.encoding import Encoded

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
FORGET_PEAK = "5"
KIB, MIB = 2**10, 2**20
VALUE = 4
"""Bytes of a float32, and of a token id."""
OPAQUE = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType)
"""Objects of the program itself, whose references ``held_bytes`` does not follow."""


@dataclass(frozen=True)
class Queries:
    """The traffic to and from the model; it follows from the options and the data."""

    train: int
    """Candidates, each answered on all training examples; the budget counts these."""
    dev: int
    """Prompts answered on all development examples during the search."""
    text_up_bytes: int
    """The training examples as token ids without padding and placeholders; the user uploads them once."""
    z_up_bytes: int
    """Upload per query if the user sends z and the server knows the projection."""
    prompt_up_bytes: int
    """Upload per query if the user sends the prompt."""
    logits_down_bytes: int
    """Download per query: a logit per training example and class."""
    measured: bool = False
    """Whether texts, prompts and logits were measured on the wire, including HTTP headers and retries."""

    @classmethod
    def of(
        cls, train: int, dev: int, part: Encoded, dim: int, prompt: Tensor, placeholders: int, session: Any
    ) -> Queries:
        """Compute the traffic, or return what a session with a server has measured.

        Args:
            train: candidates answered on the training examples.
            dev: prompts answered on the development examples.
            part: the training examples.
            dim: d, the length of z.
            prompt: a layer's, [n, H].
            placeholders: placeholder tokens in every example.
            session: the session of the training examples.
        """
        registration = getattr(session, "registration", None)
        if registration is not None and session.candidates:
            up, down = (round(total / session.candidates) for total in (session.answers.up, session.answers.down))
            return cls(train, dev, registration.up, VALUE * dim, up, down, measured=True)
        tokens = int(part.examples.attention_mask.sum()) - placeholders * len(part.labels)
        answers = len(part.labels) * len(part.examples.words_of_classes)
        return cls(train, dev, VALUE * tokens, VALUE * dim, VALUE * prompt.numel(), VALUE * answers)


@dataclass(frozen=True)
class Memory:
    """The memory of a search, in MiB."""

    user: float
    """The state of CMA-ES, of all layers."""
    projection: float
    """The matrix A of all layers: on the server if the user sends z, on the user's side if it sends prompts."""
    server: float | None
    """The peak of the process without the user's part (CPU), or the memory in use on the device (CUDA); None if the
    system does not report it, or the model is on another machine."""

    @classmethod
    def of(cls, user_bytes: int, projection_bytes: int, device: torch.device | None) -> Memory:
        """Measure the current use; a device of None means another machine."""
        server = None
        if device is not None and device.type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
            server = (total - free) / MIB
        elif device is not None and (peak := _peak_bytes()) is not None:
            server = (peak - user_bytes) / MIB
        return cls(user_bytes / MIB, projection_bytes / MIB, server)


def forget_peak() -> None:
    """Reset the process's memory peak, on systems that can; on others the peak counts from the process's start."""
    with suppress(OSError):
        CLEAR.write_text(FORGET_PEAK)


def held_bytes(*roots: Any) -> int:
    """Return the bytes of all NumPy arrays and tensors reachable from objects, each memory block once."""
    seen: set[int] = set()
    total = 0
    queue = list(roots)
    while queue:
        item = queue.pop()
        if isinstance(item, np.ndarray) and isinstance(item.base, np.ndarray):
            item = item.base
        key = item.untyped_storage().data_ptr() if isinstance(item, Tensor) else id(item)
        if key in seen or isinstance(item, OPAQUE):
            continue
        seen.add(key)
        if isinstance(item, np.ndarray):
            total += item.nbytes
        elif isinstance(item, Tensor):
            total += item.untyped_storage().nbytes()
        else:
            queue += gc.get_referents(item)
    return total


def _peak_bytes() -> int | None:
    """Return the largest resident memory of this process since ``forget_peak``."""
    if STATUS.exists():
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * KIB
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else KIB)
