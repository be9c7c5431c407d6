"""Generations replayed: what a chain of stages queues on a device is recorded once, and queued again by one call.

A recording reads and writes fixed memory. So it has input tensors of its own, into which each generation's are copied,
and its answer is copied out before anything else is replayed. The projection of a candidate, A z + p0, is not in it:
that is one product in a generation, its matrix differs between the layers of BBTv2, and a population's parts share its
result, each in a recording of its own.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .faults import first_line
from .runner import Runner

MOST = 256
"""How many recordings are kept: BBTv2 has two for each layer and part of a population."""
PLAIN = 2
"""How often a chain runs as it is. The first time warms its kernels and their memory up; what comes only twice, as two
prompts do on a batch of the test set, is not worth a recording."""

Chain = Callable[[Runner, int, Tensor, Sequence[Tensor], dict[str, Tensor]], Tensor]
"""Runs the stages of a runner from one on: Engine.run_chain()."""

logger = logging.getLogger(__name__)


class Recorder(Protocol):
    """Where work is queued, and recorded."""

    def use(self) -> AbstractContextManager[None]:
        """Queue what runs within this block after PyTorch's work so far, and PyTorch's later work after it."""
        ...

    def capture(self, work: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        """Record work that has run before: return what queues it again, and the tensor that this writes."""
        ...


@dataclass(frozen=True)
class Recording:
    """A chain from one stage on, for one set of shapes."""

    inputs: tuple[Tensor, ...]
    """The tensors it reads: hidden states, then prompts; others of the same shapes share them."""
    replay: Callable[[], object]
    output: Tensor
    """The tensor it writes."""


@dataclass
class Known:
    """A chain that has run."""

    reads: tuple[weakref.ref[Any], ...]
    """The runner and the tensors that are not copied: while they are alive, nothing else has their addresses."""
    runs: int = 0
    recording: Recording | None = None
    held: tuple[Any, ...] = ()
    """What ``reads`` refers to, once there is a recording, which reads it."""

    @property
    def alive(self) -> bool:
        """Tell whether the addresses still stand for what ran."""
        return all(one() is not None for one in self.reads)


class Replay:
    """The recordings of an engine.

    A chain runs as it is PLAIN times, then it is recorded. What cannot be recorded is said once, and from then on
    nothing is.

    Args:
        recorder: where the work is queued.
        where: what the log calls that.
    """

    def __init__(self, recorder: Recorder, where: str) -> None:
        self.on = True
        """Whether recording has not failed."""
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
        """Do what a chain does.

        Args:
            chain: runs the stages one by one.
            run: the loaded stages.
            first: the stage that hidden enters.
            hidden: [P', N, S, H].
            prompts: one for each of the stages, [P, n, H] or [1, n, H].
            tensors: what else the stages take, by name; these are read where they lie.
            fixed: other addresses that the stages read or write.

        Returns:
            What the chain returns, in memory that no replay writes.
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
        """Copy inputs to where recordings read them, but for those that lie there from the last time.

        A tensor that was copied is held, so that no other can take its place and name; whoever makes one for a chain
        does not change it any more.
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
        """Keep a chain as the last that ran, and forget the one that has not for longest."""
        self._known[key] = known
        if len(self._known) > MOST:
            del self._known[next(iter(self._known))]

    def forget(self) -> None:
        """Forget all recordings, as memory that they use between their first and last kernel may now be another's."""
        self._known.clear()
        self._inputs.clear()
        self._copied.clear()

    def _give_up(self, error: Exception) -> None:
        self.on = False
        self.forget()
        logger.warning("CUDA graphs fail on %s: continuing without (%s)", self._where, first_line(error))
