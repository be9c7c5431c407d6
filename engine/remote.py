"""The engine on another machine: `bbt-fast serve` answers. Neither the weights nor their size matter here.

Examples and committed prompts are named by their content, and every request names what it depends on. So a request can
be repeated, and a server that was started again, or that forgot, is told once more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..export.errors import DeviceError, NumericsError, ShapeError, UsageError
from ..export.examples import Examples
from .calls import Caller, Traffic, UnknownNameError
from .wire import Array, Message, content_name

SCORER = "scorer"
TRIES = 3
"""How often a server is told the same thing again before something else must be wrong."""
logger = logging.getLogger(__name__)


def graph_name(mode: str, n_prompt_tokens: int, cuts: str) -> str:
    """Return the version under which the scorer has a graph: add-50-input."""
    return f"{mode}-{n_prompt_tokens}-{cuts}"


def load_remote(
    url: str,
    api_key: str | None = None,
    *,
    mode: str = "add",
    n_prompt_tokens: int = 50,
    cuts: str = "input",
    precision: str = "auto",
    **calls: float,
) -> RemoteEngine:
    """Ask a server for a graph.

    Args:
        url: where it is.
        api_key: what it knows us by, if it asks.
        mode: as for ``load_engine``.
        n_prompt_tokens: as for ``load_engine``.
        cuts: as for ``load_engine``.
        precision: what the server must compute in; "auto" takes what it does.
        calls: see ``Caller``.

    Raises:
        UsageError: if the URL, the key or a value is refused, or the server computes in another precision.
        DeviceError: if it cannot be reached.
    """
    engine = RemoteEngine(Caller(url, api_key, **calls), graph_name(mode, n_prompt_tokens, cuts))
    if precision not in ("auto", engine.precision):
        raise UsageError(f"{url} computes in {engine.precision}, but --precision is {precision}. Leave it out.")
    logger.info("%s answers: %s in %s on %s", url, engine.facts["engine"], engine.precision, engine.facts["device"])
    return engine


class RemoteEmbeddings:
    """The word embeddings of a server's model."""

    def __init__(self, engine: RemoteEngine) -> None:
        """Take whose they are."""
        self._engine = engine
        self.digest = str(engine.facts["embeddings_digest"])
        self.spread = float(engine.facts["embeddings_spread"])
        self.width = int(engine.facts["embeddings_width"])

    def rows(self, ids: Sequence[int]) -> Tensor:
        """Return those of tokens, [len(ids), E] float32."""
        engine = self._engine
        answer = engine.caller.post(engine.path("embeddings"), {"ids": np.array(ids, np.int64)}, {}, engine.traffic)
        return torch.from_numpy(answer.tensors["rows"].copy())


class RemoteEngine:
    """What the tuner asks of an engine, answered by a server."""

    name = "remote"
    holds_model = False
    device = torch.device("cpu")
    """Where prompts come from and logits arrive."""
    runs_on = place = "cpu"
    """What stands in journals and results: this side's device."""

    def __init__(self, caller: Caller, graph: str) -> None:
        """Ask the server what it is; load_remote() checks the rest."""
        self.caller, self.graph, self.traffic = caller, graph, Traffic()
        self.facts = self._ask()
        self.mode, n_prompt_tokens, self.cuts = graph.split("-")
        self.n_prompt_tokens = int(n_prompt_tokens)
        self.n_layers, self.hidden_size = int(self.facts["n_layers"]), int(self.facts["hidden_size"])
        self.precision = str(self.facts["precision"])
        self.parity: dict[str, float] = dict(self.facts["parity"])
        self.export_seconds = float(self.facts["export_seconds"])
        self.embeddings = RemoteEmbeddings(self)

    def path(self, call: str = "") -> str:
        """Return the path of a call to this graph."""
        return "/".join(filter(None, [f"/v2/models/{SCORER}/versions/{self.graph}", call]))

    def open(self, examples: Examples) -> RemoteSession:
        """Tell the server the examples, once.

        Raises:
            ShapeError: if its model cannot take them.
            DeviceError: if it cannot be reached.
        """
        session = RemoteSession(self, examples)
        session.register()
        return session

    def close(self) -> None:
        """Close the connections."""
        self.caller.close()

    def require_same(self) -> None:
        """Make sure that a server that forgot still has the same model.

        Raises:
            DeviceError: if not.
        """
        different = {key for key, value in self._ask().items() if key in IDENTITY and value != self.facts[key]}
        if different:
            raise DeviceError(
                f"{self.caller.url} now answers with something else than before ({', '.join(sorted(different))} "
                "differ). Start it again with the model, engine and precision that the run was started with."
            )

    def _ask(self) -> dict[str, Any]:
        facts = self.caller.get(self.path(), self.traffic).get("parameters")
        if not isinstance(facts, dict) or not set(facts) >= {*IDENTITY, "parity", "export_seconds"}:
            raise DeviceError(f"{self.caller.url} is no scorer of bbt-fast, or one of another version.")
        return facts


IDENTITY = (
    "model_type", "n_layers", "hidden_size", "fingerprint", "engine", "precision", "device", "embeddings_digest",
    "embeddings_spread", "embeddings_width", "vocabulary",
)  # fmt: skip
"""The facts that answers depend on."""


class RemoteSession:
    """N examples on a server."""

    def __init__(self, engine: RemoteEngine, examples: Examples) -> None:
        """Take the examples; ``register`` sends them."""
        self.engine, self._size, self._classes = engine, len(examples), len(examples.words_of_classes)
        self.registration, self.answers = Traffic(), Traffic()
        """What the texts took, and what all else did."""
        self.candidates = 0
        """How many prompts were answered."""
        self._tensors = examples.arrays
        self.name = content_name(self._tensors)
        self._committed = self._told = State({})
        """The committed prompts, and those that the server was last told."""

    def __len__(self) -> int:
        """Return N."""
        return self._size

    def register(self) -> None:
        """Send the examples."""
        call = self.engine.path("examples")
        answer = self.engine.caller.post(call, self._tensors, {}, self.registration)
        if answer.parameters.get("examples") != self.name:
            raise DeviceError(f"{self.engine.caller.url} received other examples than were sent.")

    def evaluate(self, prompts: Tensor, layer: int = 0) -> Tensor:
        """Answer every candidate prompt; see ``Session.evaluate``.

        Raises:
            ShapeError: if the prompts do not fit the graph or there is no such layer.
            NumericsError: if a prompt or a logit is NaN or infinite.
            DeviceError: if the server fails or cannot be reached.
        """
        tensors = {"prompts": self._prompt(prompts)}
        answer = self._ask("infer", tensors, layer)
        logits = answer.tensors.get("logits")
        if logits is None or logits.shape != (len(prompts), self._size, self._classes):
            raise DeviceError(f"{self.engine.caller.url} did not return logits {len(prompts), self._size}.")
        if not np.isfinite(logits).all():
            raise NumericsError(f"{self.engine.caller.url} returned NaN or infinite logits.")
        self.candidates += len(prompts)
        return torch.from_numpy(logits.astype(np.float32))

    def commit(self, prompt: Tensor, layer: int = 0) -> None:
        """Fix a layer's prompt ([n, H]) for all later calls; the server is told with the next one that needs it.

        Raises:
            ShapeError: if the prompt does not fit the graph or there is no such layer.
        """
        shape, stages = (self.engine.n_prompt_tokens, self.engine.hidden_size), self._stages
        if tuple(prompt.shape) != shape:
            raise ShapeError(f"prompts must be {list(shape)}, not {list(prompt.shape)}.")
        if not 0 <= layer < stages:
            raise ShapeError(f"layer is {layer}, but prompts can enter layers 0 to {stages - 1} here.")
        array = self._prompt(prompt)
        self._committed = State(self._committed.prompts | {layer: array})

    def clipped_spread(self, layer: int) -> float:
        """Return how far the values that enter a layer spread, without outliers; see ``Session.hidden_states``."""
        return float(self._ask("spread", {}, layer).parameters["spread"])

    @property
    def _stages(self) -> int:
        return 1 if self.engine.cuts == "input" else self.engine.n_layers

    def _prompt(self, prompt: Tensor) -> Array:
        if prompt.numel() == 0:
            raise ShapeError(f"prompts must be [P, n, H], not {list(prompt.shape)}.")
        array: Array = np.ascontiguousarray(prompt.detach().cpu().float())
        if not np.isfinite(array).all():
            raise NumericsError("prompts hold NaN or infinity: try a smaller --sigma.")
        return array

    def _ask(self, call: str, tensors: dict[str, Array], layer: int) -> Message:
        """Ask something about the examples under the committed prompts."""

        def ask() -> Message:
            self._tell()
            about = {"examples": self.name, "committed": self._committed.name, "layer": layer}
            return self.engine.caller.post(self.engine.path(call), tensors, about, self.answers)

        return self._reminding(ask)

    def _reminding(self, ask: Callable[[], Message]) -> Message:
        """Ask; if the server does not know what it was told, tell it again."""
        for left in reversed(range(TRIES)):
            try:
                return ask()
            except UnknownNameError as error:
                if not left:
                    raise
                logger.warning("%s forgot: registering again (%s)", self.engine.caller.url, error)
                self.engine.require_same()
                self._told = State({})
                self.register()
        raise AssertionError

    def _tell(self) -> None:
        """Send the committed prompts that the server does not have yet."""
        old, new = self._told, self._committed
        if old.name == new.name:
            return
        changed = {k: v for k, v in new.prompts.items() if not np.array_equal(v, old.prompts.get(k, np.zeros_like(v)))}
        tensors = {"layers": np.array(list(changed), np.int64), "prompts": np.stack(list(changed.values()))}
        about = {"examples": self.name, "base": old.name}
        answer = self.engine.caller.post(self.engine.path("commits"), tensors, about, self.answers)
        if answer.parameters.get("committed") != new.name:
            raise DeviceError(f"{self.engine.caller.url} received other prompts than were sent.")
        self._told = new


@dataclass(frozen=True)
class State:
    """Committed prompts."""

    prompts: dict[int, Array]
    """[n, H] by layer; zeros, which are as none, stay here so that a server can be told."""

    @cached_property
    def name(self) -> str:
        """See ``state_name``."""
        return state_name({layer: prompt for layer, prompt in self.prompts.items() if prompt.any()})


def state_name(committed: dict[int, Array]) -> str:
    """Return the name of committed prompts that are not zero; none has the name ""."""
    return content_name({str(layer): prompt for layer, prompt in committed.items()}) if committed else ""
