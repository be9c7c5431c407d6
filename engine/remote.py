"""The client of `bbt-fast serve`: an engine on another machine. No weights are needed here.

Examples and committed prompts are named by a digest of their content, and every request names its dependencies. So
requests can be repeated, and a server that has restarted or evicted something is sent the data again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..export.errors import DeviceError, NumericsError, ShapeError, UsageError
from ..export.examples import Examples
from .calls import Caller, Traffic, UnknownNameError
from .distant import DistantEmbeddings, check_commit, floats
from .wire import Array, Message, content_name

SCORER = "scorer"
TRIES = 3
"""How often one call may send a server the examples and prompts."""
logger = logging.getLogger(__name__)


def graph_name(mode: str, n_prompt_tokens: int, cuts: str) -> str:
    """Return a graph's version in the scorer's URLs: add-50-input."""
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
    """Connect to a server's graph.

    Args:
        url: the server's URL.
        api_key: the key, if the server requires one.
        mode: as for ``load_engine``.
        n_prompt_tokens: as for ``load_engine``.
        cuts: as for ``load_engine``.
        precision: the required precision; "auto" accepts the server's.
        calls: see ``Caller``.

    Raises:
        UsageError: if the server refuses the URL, the key or a value, or computes in another precision.
        DeviceError: if it cannot be reached.
    """
    engine = RemoteEngine(Caller(url, api_key, **calls), graph_name(mode, n_prompt_tokens, cuts))
    if precision not in ("auto", engine.precision):
        raise UsageError(f"{url} computes in {engine.precision}, but --precision is {precision}. Omit --precision.")
    logger.info("%s answers: %s in %s on %s", url, engine.facts["engine"], engine.precision, engine.facts["device"])
    return engine


class RemoteEngine:
    """A server with the interface of an engine that the tuner uses."""

    name = "remote"
    holds_model = False
    device = torch.device("cpu")
    """The device of prompts and logits on this side."""
    runs_on = place = "cpu"
    """The device in journals and results: this side's."""

    def __init__(self, caller: Caller, graph: str) -> None:
        """Ask the server for its facts; load_remote() validates the arguments."""
        self.caller, self.graph, self.traffic = caller, graph, Traffic()
        self.facts = self._ask()
        self.mode, n_prompt_tokens, self.cuts = graph.split("-")
        self.n_prompt_tokens = int(n_prompt_tokens)
        self.n_layers, self.hidden_size = int(self.facts["n_layers"]), int(self.facts["hidden_size"])
        self.precision = str(self.facts["precision"])
        self.parity: dict[str, float] = dict(self.facts["parity"])
        self.export_seconds = float(self.facts["export_seconds"])
        self.n_stages = 1 if self.cuts == "input" else self.n_layers
        self.embeddings = DistantEmbeddings(
            str(self.facts["embeddings_digest"]), float(self.facts["embeddings_spread"]),
            int(self.facts["embeddings_width"]), self._embedding_rows,
        )  # fmt: skip

    def path(self, call: str = "") -> str:
        """Return the path of a call to this graph."""
        return "/".join(filter(None, [f"/v2/models/{SCORER}/versions/{self.graph}", call]))

    def open(self, examples: Examples) -> RemoteSession:
        """Send the examples to the server.

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
        """Check that the server still has the same model.

        Raises:
            DeviceError: if it has not.
        """
        different = {key for key, value in self._ask().items() if key in IDENTITY and value != self.facts[key]}
        if different:
            raise DeviceError(
                f"{self.caller.url} has changed since the run started: {', '.join(sorted(different))}. Restart it with "
                "the run's model, engine and precision."
            )

    def _ask(self) -> dict[str, Any]:
        facts = self.caller.get(self.path(), self.traffic).get("parameters")
        if not isinstance(facts, dict) or not set(facts) >= {*IDENTITY, "parity", "export_seconds"}:
            raise DeviceError(f"{self.caller.url} is no `bbt-fast serve` of this version. Check --url and its version.")
        return facts

    def _embedding_rows(self, ids: Sequence[int]) -> Array:
        answer = self.caller.post(self.path("embeddings"), {"ids": np.array(ids, np.int64)}, {}, self.traffic)
        return answer.tensors["rows"]


IDENTITY = (
    "model_type", "n_layers", "hidden_size", "fingerprint", "engine", "precision", "device", "embeddings_digest",
    "embeddings_spread", "embeddings_width", "vocabulary",
)  # fmt: skip
"""The facts that determine the answers."""


class RemoteSession:
    """N examples on a server."""

    def __init__(self, engine: RemoteEngine, examples: Examples) -> None:
        """Take the examples; ``register`` sends them."""
        self.engine, self._size, self._classes = engine, len(examples), len(examples.words_of_classes)
        self.registration, self.answers = Traffic(), Traffic()
        """HTTP bytes for the texts, and for everything else."""
        self.candidates = 0
        """The number of answered prompts."""
        self._tensors = examples.arrays
        self.name = content_name(self._tensors)
        self._committed = self._sent = State({})
        """The committed prompts, and those that the server has received."""

    def __len__(self) -> int:
        """Return N."""
        return self._size

    def register(self) -> None:
        """Send the examples."""
        call = self.engine.path("examples")
        answer = self.engine.caller.post(call, self._tensors, {}, self.registration)
        if answer.parameters.get("examples") != self.name:
            raise DeviceError(f"{self.engine.caller.url} received damaged examples. Check the network and its proxies.")

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
            raise DeviceError(
                f"{self.engine.caller.url} must return logits {[len(prompts), self._size, self._classes]}, not "
                f"{None if logits is None else list(logits.shape)}. Check its version."
            )
        if not np.isfinite(logits).all():
            raise NumericsError(
                f"{self.engine.caller.url} returned NaN or infinite logits. Try a smaller --sigma, or fp32 there."
            )
        self.candidates += len(prompts)
        return torch.from_numpy(logits.astype(np.float32))

    def commit(self, prompt: Tensor, layer: int = 0) -> None:
        """Fix a layer's prompt ([n, H]) for all later calls; the next call sends it.

        Raises:
            ShapeError: if the prompt does not fit the graph or there is no such layer.
        """
        engine = self.engine
        check_commit(prompt, layer, (engine.n_prompt_tokens, engine.hidden_size), engine.n_stages)
        array = self._prompt(prompt)
        self._committed = State(self._committed.prompts | {layer: array})

    def clipped_spread(self, layer: int) -> float:
        """Return the spread of a layer's input without outliers; see ``Session.clipped_spread``."""
        return float(self._ask("spread", {}, layer).parameters["spread"])

    def _prompt(self, prompt: Tensor) -> Array:
        if prompt.numel() == 0:
            raise ShapeError(f"prompts must be [P, n, H], not {list(prompt.shape)}.")
        array = floats(prompt)
        if not np.isfinite(array).all():
            raise NumericsError("prompts contain NaN or infinity. Try a smaller --sigma.")
        return array

    def _ask(self, call: str, tensors: dict[str, Array], layer: int) -> Message:
        """Make a call about the examples under the committed prompts; resend both if the server has lost them."""
        for left in reversed(range(TRIES)):
            try:
                self._send_committed()
                about = {"examples": self.name, "committed": self._committed.name, "layer": layer}
                return self.engine.caller.post(self.engine.path(call), tensors, about, self.answers)
            except UnknownNameError as error:
                if not left:
                    raise
                logger.warning("%s has lost the examples: registering again (%s)", self.engine.caller.url, error)
                self.engine.require_same()
                self._sent = State({})
                self.register()
        raise AssertionError

    def _send_committed(self) -> None:
        """Send the committed prompts that the server does not have yet."""
        old, new = self._sent, self._committed
        if old.name == new.name:
            return
        changed = {k: v for k, v in new.prompts.items() if not np.array_equal(v, old.prompts.get(k, np.zeros_like(v)))}
        tensors = {"layers": np.array(list(changed), np.int64), "prompts": np.stack(list(changed.values()))}
        about = {"examples": self.name, "base": old.name}
        answer = self.engine.caller.post(self.engine.path("commits"), tensors, about, self.answers)
        if answer.parameters.get("committed") != new.name:
            raise DeviceError(f"{self.engine.caller.url} received damaged prompts. Check the network and its proxies.")
        self._sent = new


@dataclass(frozen=True)
class State:
    """Committed prompts."""

    prompts: dict[int, Array]
    """[n, H] by layer. Zeros have no effect but are kept, so that they replace an earlier prompt on the server."""

    @cached_property
    def name(self) -> str:
        """See ``state_name``."""
        return state_name({layer: prompt for layer, prompt in self.prompts.items() if prompt.any()})


def state_name(committed: dict[int, Array]) -> str:
    """Return the name of non-zero committed prompts; "" if there are none."""
    return content_name({str(layer): prompt for layer, prompt in committed.items()}) if committed else ""
