"""What a run would cost if the model stood behind an API, as Sun et al. 2022 count it (Table 3). docs/runs.md explains.

A query is one candidate answered on all training examples: the user sends z, or the prompt made of it, and is sent the
logits of the label words. The user's side is CMA-ES; the server's is the model.
"""

from __future__ import annotations

import gc
import sys
import types
from dataclasses import dataclass, replace
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
"""Bytes of a float32, and of a token's id."""
OPAQUE = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType)
"""What leads out of an object into the program."""


@dataclass(frozen=True)
class Queries:
    """How much goes to the model and comes back; it follows from the options and the data."""

    train: int
    """Candidates, each answered on all training examples: what the budget counts."""
    dev: int
    """Prompts answered on all development examples during the search."""
    text_up_bytes: int
    """The training examples as token ids without padding and placeholders; they need to go up only once."""
    z_up_bytes: int
    """Per query, if z goes up and the server knows the projection."""
    prompt_up_bytes: int
    """Per query, if the prompt goes up."""
    logits_down_bytes: int
    """Per query: a logit per training example and class."""
    measured: bool = False
    """Whether texts, prompts and logits were counted on the wire, HTTP and what was repeated included."""

    @classmethod
    def of(cls, train: int, dev: int, part: Encoded, dim: int, prompt: Tensor, placeholders: int) -> Queries:
        """Count.

        Args:
            train: candidates answered on the training examples.
            dev: prompts answered on the development examples.
            part: the training examples.
            dim: d, the length of z.
            prompt: a layer's, [n, H].
            placeholders: tokens in every example that only keep the prompt's place.
        """
        examples = part.examples
        tokens = int(examples.attention_mask.sum()) - placeholders * len(part.labels)
        answers = len(part.labels) * len(examples.words_of_classes)
        return cls(train, dev, VALUE * tokens, VALUE * dim, VALUE * prompt.numel(), VALUE * answers)

    def counted(self, session: Any) -> Queries:
        """Return the same with what a session with a server took; a local one took nothing.

        Args:
            session: with the training examples.
        """
        registration = getattr(session, "registration", None)
        if registration is None or not session.candidates:
            return self
        up, down = (round(total / session.candidates) for total in (session.answers.up, session.answers.down))
        return replace(self, text_up_bytes=registration.up, prompt_up_bytes=up, logits_down_bytes=down, measured=True)


@dataclass(frozen=True)
class Memory:
    """What a search held in memory, in MiB."""

    user: float
    """The state of CMA-ES, of all layers."""
    projection: float
    """The matrix A of all layers: the server's if z goes up, the user's if the prompt does."""
    server: float | None
    """The peak of the process (CPU) without the user's part, or what is in use on the device (CUDA); None where the
    system does not tell, and where the model is on another machine."""

    @classmethod
    def of(cls, user_bytes: int, projection_bytes: int, device: torch.device | None) -> Memory:
        """Measure now; a device of None is another machine's."""
        server: float | None
        if device is None:
            server = None
        elif device.type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
            server = (total - free) / MIB
        else:
            peak = _peak_bytes()
            server = None if peak is None else (peak - user_bytes) / MIB
        return cls(user_bytes / MIB, projection_bytes / MIB, server)


def forget_peak() -> None:
    """Let the peak of the process begin again, where the system can; elsewhere it counts from the process's start."""
    try:
        CLEAR.write_text(FORGET_PEAK)
    except OSError:
        return


def held_bytes(*roots: Any) -> int:
    """Return the bytes of all NumPy arrays and tensors that objects hold, each memory block once."""
    seen: set[int] = set()
    total = 0
    queue = list(roots)
    while queue:
        thing = queue.pop()
        if isinstance(thing, np.ndarray) and isinstance(thing.base, np.ndarray):
            thing = thing.base
        key = thing.untyped_storage().data_ptr() if isinstance(thing, Tensor) else id(thing)
        if key in seen or isinstance(thing, OPAQUE):
            continue
        seen.add(key)
        if isinstance(thing, np.ndarray):
            total += thing.nbytes
        elif isinstance(thing, Tensor):
            total += thing.untyped_storage().nbytes()
        else:
            queue += gc.get_referents(thing)
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
