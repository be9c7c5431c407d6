"""What a process of a cluster holds: an engine of its own, and the sessions that calls name.

A call names what it depends on by content and brings a reference along. What the process does not have yet it fetches,
so one that starts afresh is told everything by the next call.
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
    """A value in the cluster's memory, known by its content."""

    name: str
    reference: Any


@dataclass(frozen=True)
class Parts:
    """A loaded model, taken apart to be sent: what an engine or a hook attaches to one cannot be."""

    kind: type[PreTrainedModel]
    config: PreTrainedConfig
    weights: dict[str, Tensor]

    @classmethod
    def of(cls, model: PreTrainedModel) -> Parts:
        """Take a model apart."""
        return cls(type(model), model.config, {name: tensor.cpu() for name, tensor in model.state_dict().items()})

    def together(self) -> PreTrainedModel:
        """Put the model together again."""
        model = self.kind(self.config)
        model.load_state_dict(self.weights)
        return load_model(model)


@dataclass(frozen=True)
class Recipe:
    """How a worker's engine is loaded."""

    model: Named | str
    """A hub id or folder that all nodes know, or the parts of a loaded model in the cluster's memory."""
    allow_pickle: bool
    engine: str
    precision: str
    options: dict[str, Any]
    """What else ``load_engine`` takes."""


@dataclass(frozen=True)
class Facts:
    """What a search must know of a worker's engine."""

    engine: str
    precision: str
    device: str
    """cpu or cuda."""
    family: str
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
        """Say in what another worker differs that answers depend on, or None."""
        for name in ("engine", "precision", "device", "fingerprint", "embeddings_digest"):
            if getattr(self, name) != getattr(other, name):
                return f"{name} is {getattr(other, name)} on {other.host}, and {getattr(self, name)} on {self.host}"
        return None


@dataclass(frozen=True)
class Asked:
    """A share of a population's evaluation."""

    examples: Named
    committed: dict[int, Named]
    layer: int
    prompts: Any
    """A reference to all candidates' prompts [P, n, H]; or to their z [P, d], with a projection."""
    candidates: tuple[int, int]
    """Which of them."""
    projection: Named | None = None
    """A [n*H, d] and p0 [n, H]."""


class Worker:
    """An engine in a process of the cluster."""

    def __init__(self, engine: Engine, fetch: Fetch) -> None:
        """Take a loaded engine, and what returns the value that a reference stands for."""
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
        """Say what was loaded."""
        engine, words = self._engine, self._engine.embeddings
        return Facts(
            engine.name, engine.precision, engine.device.type, engine.family.name, engine.n_layers, engine.hidden_size,
            engine.staged.fingerprint, words.digest, words.spread, words.width, engine.parity, engine.export_seconds,
            socket.gethostname(), os.getpid(),
        )  # fmt: skip

    def evaluate(self, asked: Asked) -> tuple[Array, float]:
        """Answer a share: label logits [P', N, C], and the seconds that they took."""
        session = self._session(asked.examples, asked.committed)
        prompts = self._prompts(asked)[slice(*asked.candidates)]
        began = time.perf_counter()
        logits = session.evaluate(prompts, asked.layer)
        return logits.numpy(), time.perf_counter() - began

    def open(self, examples: Named) -> None:
        """Encode examples ahead of the first call, which also shows whether the model can take them."""
        self._session(examples, {})

    def check(self, asked: Asked) -> None:
        """Refuse a layer or prompts that do not fit, as the engine's own session does."""
        session = self._session(asked.examples, {})
        session._check(self._prompts(asked), asked.layer, 3, "[P, n, H]")

    def clipped_spread(self, examples: Named, committed: dict[int, Named], layer: int) -> float:
        """Return how far the values that enter a layer spread; see ``Session.clipped_spread``."""
        return self._session(examples, committed).clipped_spread(layer)

    def embedding_rows(self, ids: list[int]) -> Array:
        """Return the word embeddings of tokens, [len(ids), E]."""
        rows: Array = self._engine.embeddings.rows(ids).numpy()
        return rows

    def pin(self, core: int) -> None:
        """Keep this process on one core; for benchmarks."""
        for thread in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(thread), {core})

    def _session(self, examples: Named, committed: dict[int, Named]) -> Session:
        """Return the session with some examples, in the state that a call names."""
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
        """Return all candidates' prompts. All are projected, so that none depends on who answers which."""
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
    """Return an array of the cluster's memory as a tensor; nobody writes into it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch says that it cannot be written
        return torch.from_numpy(np.ascontiguousarray(array))
