"""An engine of several: each process of a Ray cluster holds one, and answers a share of every population.

The search does not know. Candidates go to the workers in proportion to their measured speed; where there are too few
of them (development and test), the texts are shared out. What a worker is asked names all that it depends on, so any
share can be answered anywhere, and again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..export.errors import NumericsError, ShapeError
from ..export.examples import Examples
from .pool import Job, Member, Pool
from .ray_cluster import Cluster, Share, fetch
from .sharing import Shares, even_parts
from .wire import content_name
from .worker import Array, Asked, Facts, Named, Parts, Recipe, Worker

logger = logging.getLogger(__name__)

PATIENCE = 60.0
"""Seconds that a share may take at least before its worker is taken to hang."""
FIRST = 900.0
"""The same while it is not known how long it usually takes: graphs may have to be built."""
SLOWER = 10.0
"""A worker hangs once it takes this many times as long as its speed promises."""


def load_workers(
    name: str,
    model: str | Path | PreTrainedModel,
    *,
    workers: int,
    ray_address: str | None = None,
    allow_pickle: bool = False,
    precision: str = "auto",
    device: str = "auto",
    patience: float = PATIENCE,
    **options: Any,
) -> WorkersEngine:
    """Load a model on several processes: one per GPU of the cluster, or one per share of its CPUs.

    Args:
        name: as for ``load_engine``; what "auto" comes to on the first is what all use.
        model: a hub id or folder that every node knows, or a loaded model.
        workers: how many processes.
        ray_address: "auto" or host:port of a cluster to join; None starts one of this machine.
        allow_pickle: also load weights from pickle files.
        precision: as for ``load_engine``.
        device: cpu, cuda or auto.
        patience: seconds that a share may take at least before its worker is taken to hang.
        **options: mode, n_prompt_tokens, cuts, and what else ``load_engine`` takes.

    Raises:
        UsageError: if there is no such cluster.
        DeviceError: if the cluster has no room for a worker.
        BbtFastError: what ``load_engine`` raises in a worker.
    """
    cluster = Cluster(ray_address, workers, torch.get_num_threads())
    try:
        share = cluster.share(workers, device)
        source = str(model) if isinstance(model, str | Path) else Named("", cluster.put(Parts.of(model)))
        asked = {"mode": "add", "n_prompt_tokens": 50, "cuts": "input"} | options

        def recipe(first: Facts | None) -> tuple[Any, ...]:
            kind = (name, precision) if first is None else (first.engine, first.precision)
            where = {"device": "cuda" if share.gpus else "cpu"}
            return Worker.of, Recipe(source, allow_pickle, *kind, options=asked | where), fetch

        alike = "auto" not in (name, precision)
        pool = Pool(cluster, share, workers, recipe, Facts.difference, alike=alike)
    except BaseException:
        cluster.close()
        raise
    engine = WorkersEngine(pool, cluster, share, asked, patience)
    facts = engine.facts
    logger.info("%d workers answer: %s in %s on %s", len(pool.ready), facts.engine, facts.precision, engine.place)
    return engine


class WorkersEmbeddings:
    """The word embeddings of the workers' model."""

    def __init__(self, engine: WorkersEngine) -> None:
        """Take whose they are."""
        self._engine, facts = engine, engine.facts
        self.digest, self.spread, self.width = facts.embeddings_digest, facts.embeddings_spread, facts.embeddings_width

    def rows(self, ids: Sequence[int]) -> Tensor:
        """Return those of tokens, [len(ids), E] float32."""
        return torch.from_numpy(np.array(self._engine.ask("embedding_rows", list(ids))))


class WorkersEngine:
    """What the tuner asks of an engine, answered by several."""

    holds_model = False
    device = torch.device("cpu")
    """Where prompts come from and logits arrive."""

    def __init__(
        self, pool: Pool, cluster: Cluster, share: Share, options: dict[str, Any], patience: float = PATIENCE
    ) -> None:
        """Take a pool of workers, of which the first is ready.

        Args:
            pool: of ``Worker``.
            cluster: where they are.
            share: what each of them has.
            options: mode, cuts and n_prompt_tokens of their engines.
            patience: seconds that a share may take at least before its worker is taken to hang.
        """
        self.pool, self._cluster, self.patience = pool, cluster, patience
        facts: Facts = pool.facts
        self.facts = facts
        self.name, self.precision, self.runs_on = facts.engine, facts.precision, facts.device
        self.n_layers, self.hidden_size = facts.n_layers, facts.hidden_size
        self.mode, self.cuts, self.n_prompt_tokens = options["mode"], options["cuts"], int(options["n_prompt_tokens"])
        self.parity, self.export_seconds = dict(facts.parity), facts.export_seconds
        each = "a GPU" if share.gpus else f"{share.cpus} CPU thread{'s' if share.cpus > 1 else ''}"
        self.place = f"{len(pool.members)} workers with {each} each"
        self.embeddings = WorkersEmbeddings(self)

    @property
    def n_stages(self) -> int:
        """How many layers prompts can enter here."""
        return 1 if self.cuts == "input" else self.n_layers

    def open(self, examples: Examples) -> WorkersSession:
        """Lay examples where all workers find them, and have one encode them.

        Raises:
            ShapeError: if the model cannot take them.
        """
        session = WorkersSession(self, examples)
        self.ask("open", session.whole)
        return session

    def ask(self, method: str, *args: Any) -> Any:
        """Have any worker answer."""
        job = Job(method, args, seconds=FIRST)
        self.pool.run([job])
        return job.answer

    def named(self, value: Any, name: str) -> Named:
        """Lay a value where all workers find it."""
        return Named(name, self._cluster.put(value))

    def put(self, value: Array) -> Any:
        """Lay the prompts of one call where all workers find them; return a reference."""
        return self._cluster.put(value)

    def close(self) -> None:
        """End the workers, and the cluster if it was started for them."""
        self.pool.close()
        self._cluster.close()


class WorkersSession:
    """N examples that all workers can answer."""

    def __init__(self, engine: WorkersEngine, examples: Examples) -> None:
        """Take the examples."""
        self.engine, self._size = engine, len(examples)
        self._examples = examples
        self.whole = self._named(examples)
        self._parts: dict[int, list[tuple[Tensor, Named]]] = {}
        self._committed: dict[int, Named] = {}
        self._projections: dict[int, tuple[Tensor, Named]] = {}
        self._shares = Shares()
        self._known = False
        """Whether the workers' speeds are of these examples."""

    def __len__(self) -> int:
        """Return N."""
        return self._size

    def evaluate(self, prompts: Tensor, layer: int = 0) -> Tensor:
        """Answer every candidate prompt; see ``Session.evaluate``.

        Raises:
            ShapeError: if the prompts do not fit the graph or there is no such layer.
            NumericsError: if a logit is NaN or infinite.
            DeviceError: if the workers fail, or the cluster is gone.
        """
        if prompts.numel() == 0 or prompts.ndim != 3 or not 0 <= layer < self.engine.n_stages:
            self.engine.ask("check", self._asked(_array(prompts), layer, None))
            raise ShapeError(f"prompts must be [P, n, H], not {list(prompts.shape)}.")
        return self._evaluate(_array(prompts), layer, None)

    def evaluate_projected(self, candidates: Array, matrix: Tensor, origin: Tensor, layer: int = 0) -> Tensor:
        """Answer candidates [P, d] whose prompts are A z + p0; only they go out, once A is there.

        Args:
            candidates: z of the population.
            matrix: A, [n*H, d]; one per layer, always the same.
            origin: p0, [n, H].
            layer: the layer whose input the prompts enter.
        """
        known = self._projections.get(layer)
        if known is None or known[0] is not matrix:
            pair = _array(matrix), _array(origin)
            known = matrix, self.engine.named(pair, content_name({"A": pair[0], "p0": pair[1]}))
            self._projections[layer] = known
        return self._evaluate(candidates.astype(np.float32), layer, known[1])

    def commit(self, prompt: Tensor, layer: int = 0) -> None:
        """Fix a layer's prompt ([n, H]) for all later calls; it goes out with the next one.

        Raises:
            ShapeError: if the prompt does not fit the graph or there is no such layer.
        """
        shape, stages = (self.engine.n_prompt_tokens, self.engine.hidden_size), self.engine.n_stages
        if tuple(prompt.shape) != shape:
            raise ShapeError(f"prompts must be {list(shape)}, not {list(prompt.shape)}.")
        if not 0 <= layer < stages:
            raise ShapeError(f"layer is {layer}, but prompts can enter layers 0 to {stages - 1} here.")
        array = _array(prompt)
        name = content_name({"prompt": array})
        if not array.any():
            self._committed.pop(layer, None)
        elif layer not in self._committed or self._committed[layer].name != name:
            self._committed[layer] = self.engine.named(array, name)

    def clipped_spread(self, layer: int) -> float:
        """Return how far the values that enter a layer spread, without outliers; see ``Session.hidden_states``."""
        return float(self.engine.ask("clipped_spread", self.whole, dict(self._committed), layer))

    def _evaluate(self, given: Array, layer: int, projection: Named | None) -> Tensor:
        asked = self._asked(given, layer, projection)
        members = self.engine.pool.ready
        by_texts = len(given) < 2 * len(self.engine.pool.members) and len(self) > 1
        jobs = self._by_texts(asked, members) if by_texts else self._by_candidates(asked, len(given), members)
        self.engine.pool.run([job for job, _, _ in jobs])
        found: Array | None = None
        for job, candidates, rows in jobs:
            logits, seconds = job.answer
            if found is None:
                found = np.empty((len(given), len(self), logits.shape[2]), np.float32)
            found[candidates, rows] = logits
            if not by_texts and job.member is not None:
                self._shares.learn(job.member, logits.shape[0] * (self.engine.n_stages - layer), seconds)
        assert found is not None
        if not np.isfinite(found).all():
            raise NumericsError(
                "the workers returned NaN or infinite logits. Try --precision fp32, or a smaller --sigma."
            )
        return torch.from_numpy(found)

    def _by_candidates(self, asked: Asked, population: int, members: Sequence[Member]) -> list[Any]:
        """Return the jobs of a population, each with its candidates and texts."""
        work = self.engine.n_stages - asked.layer
        sizes = self._shares.of(members, population) if members else [population]
        bounds = [0, *np.cumsum(sizes).tolist()]
        jobs = []
        for number, (low, high) in enumerate(pairwise(bounds)):
            if low < high:
                member = members[number] if members else None
                seconds = self._limit(member, (high - low) * work)
                share = _share(asked, (low, high))
                jobs.append((Job("evaluate", (share,), member, seconds), slice(low, high), slice(None)))
        return jobs

    def _by_texts(self, asked: Asked, members: Sequence[Member]) -> list[Any]:
        """Return the jobs of few candidates on parts of the texts."""
        parts = self._parted(len(self.engine.pool.members))
        jobs = []
        for number, (rows, named) in enumerate(parts):
            member = members[number] if number < len(members) else None
            share = Asked(named, asked.committed, asked.layer, asked.prompts, asked.candidates, asked.projection)
            jobs.append((Job("evaluate", (share,), member, FIRST), slice(None), rows.numpy()))
        return jobs

    def _parted(self, count: int) -> list[tuple[Tensor, Named]]:
        """Return the texts in parts of about as many tokens, each with its rows."""
        if count not in self._parts:
            rows = even_parts(self._examples.lengths.cpu(), count)
            self._parts[count] = [(some, self._named(self._examples.select(some))) for some in rows]
        return self._parts[count]

    def _limit(self, member: Member | None, work: float) -> float:
        """Return how long a share may take."""
        speed = self._shares.speed(member)
        return FIRST if speed is None else max(self.engine.patience, SLOWER * work / speed)

    def _asked(self, given: Array, layer: int, projection: Named | None) -> Asked:
        return Asked(self.whole, dict(self._committed), layer, self.engine.put(given), (0, len(given)), projection)

    def _named(self, examples: Examples) -> Named:
        tensors = examples.arrays
        return self.engine.named(tensors, content_name(tensors))


def _share(asked: Asked, candidates: tuple[int, int]) -> Asked:
    return Asked(asked.examples, asked.committed, asked.layer, asked.prompts, candidates, asked.projection)


def _array(tensor: Tensor) -> Array:
    array: Array = np.ascontiguousarray(tensor.detach().cpu().float().numpy())
    return array
