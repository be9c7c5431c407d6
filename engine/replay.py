"""Record the work of a stage chain on a device, and replay it for later generations with one call.

A recording reads and writes fixed memory. Inputs are therefore copied into its own tensors, and its output is copied
before the next replay. The projection of candidates, A z + p0, is not recorded: it is one product per generation, its
matrix differs between the layers of BBTv2, and the parts of a population, which have separate recordings, share it.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..export.errors import first_line
from .cuda import Queue
from .ort_calls import Calls
from .runner import Runner

MOST = 256
"""The maximum number of recordings; BBTv2 has two for each layer and part of a population."""
PLAIN = 2
"""How many times a chain runs unrecorded. The first run is the warm-up of kernels and memory. Recording does not pay
for chains that run only twice, such as two prompts on a batch of the test set."""

Chain = Callable[[Runner, int, Tensor, Sequence[Tensor], dict[str, Tensor]], Tensor]
"""Runs consecutive stages: Engine.run_chain()."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recording:
    """A recorded chain for one set of shapes."""

    inputs: tuple[Tensor, ...]
    """The tensors that it reads: hidden states, then prompts; recordings with the same shapes share them."""
    replay: Callable[[], object]
    output: Tensor
    """The tensor that it writes."""


@dataclass
class Known:
    """A chain that has run."""

    reads: tuple[weakref.ref[Any], ...]
    """The runner and the tensors that are not copied: while they are alive, their addresses are unique."""
    runs: int = 0
    recording: Recording | None = None
    held: tuple[Any, ...] = ()
    """Strong references to ``reads`` for a recording."""

    @property
    def alive(self) -> bool:
        """Whether all of ``reads`` are alive, so that the addresses are still valid."""
        return all(one() is not None for one in self.reads)


class Replay:
    """The recordings of an engine.

    A chain runs unrecorded PLAIN times, then it is recorded. After a failure, which is logged, nothing is recorded.

    Args:
        recorder: queues and records the work; a CUDA stream, or the calls of ONNX Runtime.
        where: the device's name in the log.
    """

    def __init__(self, recorder: Queue | Calls, where: str) -> None:
        self.on = True
        """False after a failure."""
        self._recorder, self._where = recorder, where
        self._known: dict[str, Known] = {}
        self._inputs: dict[str, Tensor] = {}
        self._copied: dict[str, Tensor] = {}

    def run(
        self,
        chain: Chain,
        run: Runner,
        first: int,
        hidden: Tensor,
        prompts: Sequence[Tensor],
        tensors: dict[str, Tensor],
        fixed: Sequence[int] = (),
    ) -> Tensor:
        """Run or replay a chain; return its output in memory that no replay writes.

        A recording is valid for the addresses of ``tensors``, which are not copied, and for ``fixed``, other addresses
        that the stages use.
        """
        with self._recorder.use():
            if not self.on:
                return chain(run, first, hidden, prompts, tensors)
            inputs = (hidden, *prompts)
            shapes = [(str(tensor.dtype), *tensor.shape) for tensor in inputs]
            key = str((id(run), first, shapes, [*fixed, *(tensor.data_ptr() for tensor in tensors.values())]))
            known = self._known.pop(key, None)
            read = (run, *tensors.values())
            if known is None or not known.alive:
                known = Known(tuple(map(weakref.ref, read)))
            if known.runs < PLAIN:
                answer = chain(run, first, hidden, prompts, tensors)
                known.runs += 1
                self._keep(key, known)
                return answer
            if known.recording is None:
                known.held = read
                try:
                    known.recording = self._record(chain, run, first, inputs, tensors)
                except RuntimeError as error:
                    self._give_up(error)
                    return chain(run, first, hidden, prompts, tensors)
            self._keep(key, known)
            self._copy(first, inputs)
            known.recording.replay()
            return known.recording.output.clone()

    def _record(
        self, chain: Chain, run: Runner, first: int, inputs: tuple[Tensor, ...], tensors: dict[str, Tensor]
    ) -> Recording:
        own = self._copy(first, inputs)
        replay, output = self._recorder.capture(lambda: chain(run, first, own[0], own[1:], tensors))
        return Recording(own, replay, output)

    def _copy(self, first: int, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Copy inputs into the recordings' tensors, except those copied the last time.

        A reference to each copied tensor is kept, so that no other can get its address. Callers must not modify a
        tensor after passing it.
        """
        own = []
        for number, given in enumerate(inputs):
            stage = first + number - 1 if number else "hidden"
            name = str((stage, given.dtype, list(given.shape)))
            if name not in self._inputs:
                self._inputs[name] = torch.empty_like(given, memory_format=torch.contiguous_format)
            if self._copied.get(name) is not given:
                self._inputs[name].copy_(given)
                self._copied[name] = given
            own.append(self._inputs[name])
        return tuple(own)

    def _keep(self, key: str, known: Known) -> None:
        """Store a chain as the most recent, and evict the least recent."""
        self._known[key] = known
        if len(self._known) > MOST:
            del self._known[next(iter(self._known))]

    def forget(self) -> None:
        """Discard all recordings: other objects may now use the memory of their intermediate results."""
        self._known.clear()
        self._inputs.clear()
        self._copied.clear()

    def _give_up(self, error: Exception) -> None:
        self.on = False
        self.forget()
        logger.warning("CUDA graphs fail on %s: continuing without (%s)", self._where, first_line(error))
