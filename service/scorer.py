"""The scorer: one loaded model that answers prompts on registered examples, for BBT and BBTv2, in several graphs.

All methods run on the model's thread. Registrations are named by their content, and a request names all registrations
that it depends on. So every request can be repeated, and a client can register again with a server that dropped it.
"""

from __future__ import annotations

import logging
import re
from dataclasses import MISSING, dataclass, fields
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from bbt_fast.engine import Engine, Examples, Session, load_engine
from bbt_fast.engine.remote import SCORER, state_name
from bbt_fast.engine.wire import Array, Message, content_name
from bbt_fast.export.errors import ShapeError, UsageError
from bbt_fast.export.model import Cuts
from bbt_fast.export.prompts import Mode
from bbt_fast.tuner.search.losses import LOSSES
from bbt_fast.tuner.search.metrics import METRICS
from bbt_fast.tuner.search.objective import Yardstick
from bbt_fast.tuner.search.projection import PROJECTIONS, Projection, draw_projection

from .errors import RefusedError
from .limits import Limits
from .reading import class_labels, integers, numbers, parameter
from .shelf import Shelf

GRAPH = re.compile(r"(add|cat)-([1-9]\d{0,3})-(input|layers)")
FIELDS = tuple(field.name for field in fields(Examples))
REQUIRED = tuple(field.name for field in fields(Examples) if field.default is MISSING)
NUMBERS = ("label_bias",)
"""The fields that are no integers."""
MOST_ROWS = 4096
LARGEST_SCALE = 1e6
INPUTS = ("prompts", "z")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Registered:
    """A client's examples in a session."""

    session: Session
    labels: Tensor | None
    """[N]; required for losses."""


@dataclass(frozen=True)
class Answer:
    """The tensors and the parameters of an answer."""

    tensors: dict[str, Array]
    parameters: dict[str, Any]


class Scorer:
    """Answers prompts; every method but the constructor runs on the model's thread."""

    name = SCORER

    def __init__(self, model: PreTrainedModel, engine: str, precision: str, device: str, limits: Limits) -> None:
        """Take a loaded model, and the arguments of ``load_engine``."""
        self.model, self._asked, self._limits = model, (engine, precision, device), limits
        self._engines: dict[str, Engine] = {}
        self.shelf = Shelf(limits)

    @property
    def graphs(self) -> list[str]:
        """The loaded graphs, as versions of the model: add-50-input."""
        return sorted(self._engines)

    def engine(self, graph: str) -> Engine:
        """Return a graph's engine; the first call builds, checks and loads it.

        Raises:
            RefusedError: if the name is invalid, or too many graphs are loaded.
        """
        if graph in self._engines:
            return self._engines[graph]
        match = GRAPH.fullmatch(graph)
        if match is None:
            raise RefusedError(
                404, "usage", "a version of the scorer is MODE-TOKENS-CUTS: (add|cat)-(1..9999)-(input|layers)."
            )
        if len(self._engines) >= self._limits.max_graphs:
            raise RefusedError(
                409,
                "graphs",
                f"{', '.join(self.graphs)} are loaded, and {self._limits.max_graphs} are allowed: use one of these.",
            )
        mode, size, cuts = match.groups()
        name, precision, device = self._asked
        self._engines[graph] = load_engine(
            name,
            self.model,
            mode=cast(Mode, mode),
            n_prompt_tokens=int(size),
            cuts=cast(Cuts, cuts),
            precision=precision,
            device=device,
        )
        return self._engines[graph]

    def summary(self, *prompt: int) -> dict[str, Any]:
        """Return the protocol's metadata of all versions, or of one whose prompts are [n, H]."""

        def tensor(name: str, *shape: int, datatype: str = "FP32") -> dict[str, Any]:
            return {"name": name, "datatype": datatype, "shape": [-1, *shape]}

        return {
            "name": SCORER,
            "versions": self.graphs,
            "platform": "bbt-fast",
            "inputs": [tensor("prompts", *(prompt or (-1, -1))), tensor("z", -1)],
            "outputs": [tensor("logits", -1, -1), tensor("losses", datatype="FP64")],
        }

    def metadata(self, graph: str) -> dict[str, Any]:
        """Return the protocol's metadata of a version; its parameters describe the model to a search."""
        engine = self.engine(graph)
        facts = {
            "model_type": engine.staged.model.config.model_type,
            "fingerprint": engine.staged.fingerprint,
            "engine": engine.name,
            "precision": engine.precision,
            "device": engine.device.type,
            "n_layers": engine.n_layers,
            "hidden_size": engine.hidden_size,
            "vocabulary": len(engine.word_embeddings),
            "embeddings_digest": engine.embeddings.digest,
            "embeddings_spread": engine.embeddings.spread,
            "embeddings_width": engine.embeddings.width,
            "export_seconds": engine.export_seconds,
            "parity": engine.parity,
        }
        return self.summary(engine.n_prompt_tokens, engine.hidden_size) | {"parameters": facts}

    def examples(self, owner: str, graph: str, message: Message) -> Answer:
        """Register examples: the fields of ``Examples``, and labels [N], which losses require."""
        given = set(message.tensors)
        if not set(REQUIRED) <= given <= {*FIELDS, "labels"}:
            more = ", ".join(name for name in FIELDS if name not in REQUIRED)
            raise UsageError(f"examples are the tensors {', '.join(REQUIRED)}; {more} and labels are optional.")
        tensors = {
            name: torch.from_numpy((numbers(message, name, 1) if name in NUMBERS else integers(message, name)).copy())
            for name in FIELDS
            if name in given
        }
        examples = Examples(**tensors)
        labels = class_labels(message, len(examples), len(examples.words_of_classes))
        return self.register(owner, graph, examples, labels)

    def register(self, owner: str, graph: str, examples: Examples, labels: Tensor | None) -> Answer:
        """Register encoded examples under the name of their content."""
        engine = self.engine(graph)
        tensors = examples.arrays
        name = content_name(tensors if labels is None else {**tensors, "labels": labels.numpy()})
        key = ("examples", graph, name)
        try:
            self.shelf.get(owner, key)
        except RefusedError:
            # The embedded texts, and the activations below the tuned layer.
            tokens = int(examples.attention_mask.sum()) + len(examples) * engine.n_prompt_tokens
            size = sum(array.nbytes for array in tensors.values()) + 2 * tokens * engine.hidden_size * 4
            self.shelf.put(owner, key, None, size)  # refuse too large examples before any work
            self.shelf.put(owner, key, Registered(engine.open(examples), labels), size)
        return Answer({}, {"examples": name, "count": len(examples), "truncated": 0})

    def commits(self, owner: str, graph: str, message: Message) -> Answer:
        """Derive a committed state from another: prompts [K, n, H] for the layers [K]; zeros remove a prompt."""
        engine, prompts, layers = self.engine(graph), numbers(message, "prompts", 3), integers(message, "layers")
        stages = engine.staged.n_stages
        if prompts.shape[1:] != (engine.n_prompt_tokens, engine.hidden_size) or layers.shape != prompts.shape[:1]:
            raise ShapeError(
                f"prompts must be [K, {engine.n_prompt_tokens}, {engine.hidden_size}] and layers [K], not "
                f"{list(prompts.shape)} and {list(layers.shape)}."
            )
        if len(layers) and not (0 <= layers.min() <= layers.max() < stages):
            raise ShapeError(f"prompts can enter layers 0 to {stages - 1} here.")
        state = dict(self._state(owner, graph, message, "base"))
        state |= {int(layer): prompt.copy() for layer, prompt in zip(layers, prompts, strict=True)}
        state = {layer: prompt for layer, prompt in state.items() if prompt.any()}
        name = state_name(state)
        if state:
            self.shelf.put(owner, ("committed", graph, name), state, sum(prompt.nbytes for prompt in state.values()))
        return Answer({}, {"committed": name})

    def projections(self, owner: str, graph: str, message: Message) -> Answer:
        """Register a projection p = A z + p0 by the parameters of A; p0 is the tensor `origin` [n, H], or zero."""
        engine = self.engine(graph)
        shape = (engine.n_prompt_tokens, engine.hidden_size)
        kind, scale = parameter(message, "kind", str, "normal"), parameter(message, "scale", (int, float), 1.0)
        seed, layer, dim = (parameter(message, name, int, 0) for name in ("seed", "layer", "dim"))
        if kind not in PROJECTIONS or not 0 <= seed < 2**32 or not 0 <= layer < engine.n_layers or not 0 < dim <= 10**5:
            raise UsageError(
                f"a projection has a kind ({', '.join(PROJECTIONS)}), a seed (0 to 2^32 - 1), a layer and a dim."
            )
        if not abs(scale) < LARGEST_SCALE:
            raise UsageError(f"the scale of a projection must be below {LARGEST_SCALE:g}.")
        origin = numbers(message, "origin", 2) if "origin" in message.tensors else np.zeros(shape, np.float32)
        if origin.shape != shape:
            raise ShapeError(f"origin must be {list(shape)}, not {list(origin.shape)}.")
        about = np.array([seed, layer, dim, sorted(PROJECTIONS).index(kind)], np.int64)
        name = content_name({"about": about, "scale": np.array([scale], np.float64), "origin": origin})
        key, size = ("projection", graph, name), 4 * origin.size * dim
        self.shelf.put(owner, key, None, size)  # refuse a too large projection before any work
        drawn = draw_projection(kind, seed, layer, dim, float(scale), torch.from_numpy(origin), engine.device)
        self.shelf.put(owner, key, drawn, size)
        return Answer({}, {"projection": name})

    def spread(self, owner: str, graph: str, message: Message) -> Answer:
        """Return the spread of a layer's input values on registered examples, without outliers."""
        registered = self._registered(owner, graph, message)
        self._commit(owner, graph, message, registered.session)
        return Answer({}, {"spread": registered.session.clipped_spread(parameter(message, "layer", int, 0))})

    def embeddings(self, owner: str, graph: str, message: Message) -> Answer:
        """Return the word embeddings of tokens, for the start of a prompt."""
        engine, ids = self.engine(graph), integers(message, "ids")
        vocabulary = len(engine.word_embeddings)
        if ids.ndim != 1 or not 0 < len(ids) <= MOST_ROWS or not 0 <= ids.min() <= ids.max() < vocabulary:
            raise ShapeError(f"ids must be 1 to {MOST_ROWS} tokens from 0 to {vocabulary - 1}.")
        return Answer({"rows": engine.embeddings.rows(ids.tolist()).numpy()}, {})

    def infer(self, owner: str, graph: str, message: Message) -> Answer:
        """Answer prompts [P, n, H], or z [P, d] under a projection: logits [P, N, C], or losses [P]."""
        registered = self._registered(owner, graph, message)
        if len(message.tensors) != 1 or not set(message.tensors) <= set(INPUTS):
            raise UsageError("give one input: prompts [P, n, H], or z [P, d].")
        prompts = self._prompts(owner, graph, message)
        self._commit(owner, graph, message, registered.session)
        logits = registered.session.evaluate(prompts, parameter(message, "layer", int, 0)).float()
        loss = parameter(message, "loss", str, "")
        if not loss:
            return Answer({"logits": logits.cpu().numpy()}, {})
        if loss not in LOSSES or registered.labels is None:
            raise UsageError(f"loss must be one of {', '.join(LOSSES)}, for examples registered with labels.")
        losses, _ = Yardstick(LOSSES[loss], METRICS["accuracy"])(logits, registered.labels)
        return Answer({"losses": losses}, {})

    def _prompts(self, owner: str, graph: str, message: Message) -> Tensor:
        """Return a request's prompts, [P, n, H]."""
        if "prompts" in message.tensors:
            prompts = torch.from_numpy(numbers(message, "prompts", 3))
        else:
            z = numbers(message, "z", 2)
            name = parameter(message, "projection", str, "")
            projection: Projection = self.shelf.get(owner, ("projection", graph, name))
            if z.shape[1] != projection.matrix.shape[1]:
                raise ShapeError(f"z must be [P, {projection.matrix.shape[1]}], not {list(z.shape)}.")
            prompts = projection(z)
        if len(prompts) > self._limits.max_candidates:
            raise RefusedError(
                413,
                "usage",
                f"{len(prompts)} prompts; {self._limits.max_candidates} at a time are allowed. Send fewer.",
            )
        return prompts

    def _registered(self, owner: str, graph: str, message: Message) -> Registered:
        name = parameter(message, "examples", str, "")
        registered: Registered = self.shelf.get(owner, ("examples", graph, name))
        return registered

    def _state(self, owner: str, graph: str, message: Message, which: str) -> dict[int, Array]:
        """Return the committed prompts that a request names; the name "" means none."""
        name = parameter(message, which, str, "")
        found: dict[int, Array] = self.shelf.get(owner, ("committed", graph, name)) if name else {}
        return found

    def _commit(self, owner: str, graph: str, message: Message, session: Session) -> None:
        """Set a session to the state that a request names; unchanged prompts keep their activations."""
        engine, state = self.engine(graph), self._state(owner, graph, message, "committed")
        zero = np.zeros((engine.n_prompt_tokens, engine.hidden_size), np.float32)
        for layer in range(engine.staged.n_stages):
            session.commit(torch.from_numpy(state.get(layer, zero).copy()), layer)
