"""The object in a cluster process: an engine, and the sessions that calls name.

A call carries the name (a content digest) and a reference of each value that it depends on. The process fetches values
that it does not have, so a new process gets everything with its first call.
"""

from __future__ import annotations

import os
import socket
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from ..export.examples import Examples
from ..export.model import load_model
from .base import Engine
from .loading import load_engine
from .session import Session

SESSIONS = 6
"""How many sets of texts stay encoded: the training and development sets, and their parts."""
Array = NDArray[Any]
Fetch = Callable[[Any], Any]


@dataclass(frozen=True)
class Named:
    """A value in the cluster's memory, named by its content."""

    name: str
    reference: Any


@dataclass(frozen=True)
class Parts:
    """The sendable parts of a loaded model; objects that engines or hooks attach to a model cannot be sent."""

    kind: type[PreTrainedModel]
    config: PreTrainedConfig
    weights: dict[str, Tensor]

    @classmethod
    def of(cls, model: PreTrainedModel) -> Parts:
        """Return the parts of a model."""
        return cls(type(model), model.config, {name: tensor.cpu() for name, tensor in model.state_dict().items()})

    def together(self) -> PreTrainedModel:
        """Rebuild the model."""
        model = self.kind(self.config)
        model.load_state_dict(self.weights)
        return load_model(model)


@dataclass(frozen=True)
class Recipe:
    """How to load a worker's engine."""

    model: Named | str
    """A hub id or folder that all nodes can load, or the parts of a loaded model in the cluster's memory."""
    allow_pickle: bool
    engine: str
    precision: str
    options: dict[str, Any]
    """Other arguments of ``load_engine``."""


@dataclass(frozen=True)
class Facts:
    """What a search needs to know about a worker's engine."""

    engine: str
    precision: str
    device: str
    """cpu or cuda."""
    n_layers: int
    hidden_size: int
    fingerprint: str
    embeddings_digest: str
    embeddings_spread: float
    embeddings_width: int
    parity: dict[str, float]
    export_seconds: float
    host: str
    pid: int

    def difference(self, other: Facts) -> str | None:
        """Return how another worker differs in a way that changes answers, or None."""
        for name in ("engine", "precision", "device", "fingerprint", "embeddings_digest"):
            if getattr(self, name) != getattr(other, name):
                return f"{name} is {getattr(other, name)} on {other.host}, and {getattr(self, name)} on {self.host}"
        return None


@dataclass(frozen=True)
class Asked:
    """A share of an evaluation."""

    examples: Named
    committed: dict[int, Named]
    layer: int
    prompts: Any
    """A reference to all candidates' prompts [P, n, H]; with a projection, to their z [P, d]."""
    candidates: tuple[int, int]
    """The first candidate of the share, and the one after its last."""
    projection: Named | None = None
    """A [n*H, d] and p0 [n, H]."""


class Worker:
    """An engine in a process of the cluster."""

    def __init__(self, engine: Engine, fetch: Fetch) -> None:
        """Take a loaded engine, and a function that returns the value of a reference."""
        self._engine, self._fetch = engine, fetch
        self._sessions: OrderedDict[str, tuple[Session, dict[int, str]]] = OrderedDict()
        self._projections: dict[str, tuple[Tensor, Tensor]] = {}

    @classmethod
    def of(cls, recipe: Recipe, fetch: Fetch) -> Worker:
        """Load the engine of a recipe."""
        model = recipe.model
        loaded: PreTrainedModel = (
            load_model(model, recipe.allow_pickle) if isinstance(model, str) else fetch(model.reference).together()
        )
        return cls(load_engine(recipe.engine, loaded, precision=recipe.precision, **recipe.options), fetch)

    def facts(self) -> Facts:
        """Return the facts of the loaded engine."""
        engine, words = self._engine, self._engine.embeddings
        return Facts(
            engine.name, engine.precision, engine.device.type, engine.n_layers, engine.hidden_size,
            engine.staged.fingerprint, words.digest, words.spread, words.width, engine.parity, engine.export_seconds,
            socket.gethostname(), os.getpid(),
        )  # fmt: skip

    def evaluate(self, asked: Asked) -> tuple[Array, float]:
        """Answer a share: return label logits [P', N, C], and the seconds that they took."""
        session = self._session(asked.examples, asked.committed)
        prompts = self._prompts(asked)[slice(*asked.candidates)]
        began = time.perf_counter()
        logits = session.evaluate(prompts, asked.layer)
        return logits.numpy(), time.perf_counter() - began

    def open(self, examples: Named) -> None:
        """Encode examples before the first call; this also checks that the model can take them."""
        self._session(examples, {})

    def clipped_spread(self, examples: Named, committed: dict[int, Named], layer: int) -> float:
        """Return the spread of a layer's input without outliers; see ``Session.clipped_spread``."""
        return self._session(examples, committed).clipped_spread(layer)

    def embedding_rows(self, ids: list[int]) -> Array:
        """Return the word embeddings of tokens, [len(ids), E]."""
        rows: Array = self._engine.embeddings.rows(ids).numpy()
        return rows

    def pin(self, core: int) -> None:
        """Pin this process to one core; for benchmarks."""
        for thread in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(thread), {core})

    def _session(self, examples: Named, committed: dict[int, Named]) -> Session:
        """Return the session of these examples with these committed prompts."""
        if examples.name not in self._sessions:
            while len(self._sessions) >= SESSIONS:
                self._sessions.popitem(last=False)
            arrays = self._fetch(examples.reference)
            given: dict[str, Any] = {
                f.name: None if arrays.get(f.name) is None else _tensor(arrays[f.name]) for f in fields(Examples)
            }
            self._sessions[examples.name] = self._engine.open(Examples(**given)), {}
        self._sessions.move_to_end(examples.name)
        session, told = self._sessions[examples.name]
        for layer in {*told, *committed}:
            if layer not in committed:
                shape = self._engine.n_prompt_tokens, self._engine.hidden_size
                session.commit(torch.zeros(shape), layer)
                del told[layer]
            elif told.get(layer) != committed[layer].name:
                session.commit(_tensor(self._fetch(committed[layer].reference)), layer)
                told[layer] = committed[layer].name
        return session

    def _prompts(self, asked: Asked) -> Tensor:
        """Return the prompts of all candidates. Projecting all keeps results independent of the shares."""
        given = _tensor(self._fetch(asked.prompts))
        if asked.projection is None:
            return given
        name = asked.projection.name
        if name not in self._projections:
            matrix, origin = (_tensor(array) for array in self._fetch(asked.projection.reference))
            self._projections[name] = matrix.to(self._engine.device), origin.to(self._engine.device)
        matrix, origin = self._projections[name]
        return (given.to(matrix.device) @ matrix.T).reshape(-1, *origin.shape) + origin


def _tensor(array: Array) -> Tensor:
    """Return a read-only array of the cluster's memory as a tensor."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns about read-only arrays
        return torch.from_numpy(np.ascontiguousarray(array))
