"""Several engines as one: each process of a Ray cluster has an engine and answers a share of every population.

This is invisible to the search. Candidates are divided in proportion to the workers' measured speeds. If there are too
few of them (development and test), the texts are divided instead. A request names everything that it depends on, so any
worker can answer any share, also repeatedly.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..export.errors import ShapeError
from ..export.examples import Examples
from .distant import DistantEmbeddings, check_commit, floats
from .faults import not_finite
from .pool import Job, Member, Pool
from .ray_cluster import Cluster, Share, fetch
from .sharing import Shares, even_parts
from .wire import content_name
from .worker import Array, Asked, Facts, Named, Parts, Recipe, Worker

logger = logging.getLogger(__name__)

PATIENCE = 60.0
"""The least time, in seconds, after which a worker may count as hung."""
FIRST = 900.0
"""The same while a worker's speed is unknown: it may have to build graphs."""
SLOWER = 10.0
"""A worker counts as hung if it takes this many times as long as its speed predicts."""


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
        name: as for ``load_engine``; with "auto" the first worker chooses for all.
        model: a hub id or folder that every node can load, or a loaded model.
        workers: the number of processes.
        ray_address: "auto" or host:port of a cluster to join; None starts one on this machine.
        allow_pickle: also load weights from pickle files.
        precision: as for ``load_engine``.
        device: cpu, cuda or auto.
        patience: the least time, in seconds, after which a worker may count as hung.
        **options: mode, n_prompt_tokens, cuts, and other arguments of ``load_engine``.

    Raises:
        UsageError: if there is no such cluster.
        DeviceError: if the cluster has no room for a worker.
        BbtFastError: the error of ``load_engine`` in a worker.
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


class WorkersEngine:
    """Several workers with the interface of an engine that the tuner uses."""

    holds_model = False
    device = torch.device("cpu")
    """The device of prompts and logits on this side."""

    def __init__(
        self, pool: Pool, cluster: Cluster, share: Share, options: dict[str, Any], patience: float = PATIENCE
    ) -> None:
        """Take a pool of workers whose first is ready.

        Args:
            pool: a pool of ``Worker``.
            cluster: their cluster.
            share: the resources of each.
            options: mode, cuts and n_prompt_tokens of their engines.
            patience: the least time, in seconds, after which a worker may count as hung.
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
        self.n_stages = 1 if self.cuts == "input" else self.n_layers
        """The number of layers that prompts can enter."""
        self.embeddings = DistantEmbeddings(
            facts.embeddings_digest, facts.embeddings_spread, facts.embeddings_width,
            lambda ids: self.ask("embedding_rows", list(ids)),
        )  # fmt: skip

    def open(self, examples: Examples) -> WorkersSession:
        """Put examples into the cluster's memory, and let one worker encode them.

        Raises:
            ShapeError: if the model cannot take them.
        """
        session = WorkersSession(self, examples)
        self.ask("open", session.whole)
        return session

    def ask(self, method: str, *args: Any) -> Any:
        """Return any worker's answer."""
        job = Job(method, args, seconds=FIRST)
        self.pool.run([job])
        return job.answer

    def named(self, value: Any, name: str) -> Named:
        """Put a named value into the cluster's memory."""
        return Named(name, self._cluster.put(value))

    def put(self, value: Array) -> Any:
        """Put the prompts of one call into the cluster's memory; return a reference."""
        return self._cluster.put(value)

    def close(self) -> None:
        """End the workers, and the cluster if load_workers() started it."""
        self.pool.close()
        self._cluster.close()


class WorkersSession:
    """N examples on all workers."""

    def __init__(self, engine: WorkersEngine, examples: Examples) -> None:
        """Take the examples."""
        self.engine, self._size = engine, len(examples)
        self._examples = examples
        self.whole = self._named(examples)
        self._parts: dict[int, list[tuple[Tensor, Named]]] = {}
        self._committed: dict[int, Named] = {}
        self._projections: dict[int, tuple[Tensor, Named]] = {}
        self._shares = Shares()

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
        if prompts.ndim != 3 or prompts.numel() == 0:
            raise ShapeError(f"prompts must be [P, n, H], not {list(prompts.shape)}.")
        return self._evaluate(floats(prompts), layer, None)

    def evaluate_projected(self, candidates: Array, matrix: Tensor, origin: Tensor, layer: int = 0) -> Tensor:
        """Answer candidates [P, d] with the prompts A z + p0. A is sent once per layer, then only the candidates.

        Args:
            candidates: z of the population.
            matrix: A, [n*H, d]; the same object at every call for a layer.
            origin: p0, [n, H].
            layer: the layer whose input the prompts enter.
        """
        known = self._projections.get(layer)
        if known is None or known[0] is not matrix:
            pair = floats(matrix), floats(origin)
            known = matrix, self.engine.named(pair, content_name({"A": pair[0], "p0": pair[1]}))
            self._projections[layer] = known
        return self._evaluate(candidates.astype(np.float32), layer, known[1])

    def commit(self, prompt: Tensor, layer: int = 0) -> None:
        """Fix a layer's prompt ([n, H]) for all later calls; the next call sends it.

        Raises:
            ShapeError: if the prompt does not fit the graph or there is no such layer.
        """
        engine = self.engine
        check_commit(prompt, layer, (engine.n_prompt_tokens, engine.hidden_size), engine.n_stages)
        array = floats(prompt)
        name = content_name({"prompt": array})
        if not array.any():
            self._committed.pop(layer, None)
        elif layer not in self._committed or self._committed[layer].name != name:
            self._committed[layer] = self.engine.named(array, name)

    def clipped_spread(self, layer: int) -> float:
        """Return the spread of a layer's input without outliers; see ``Session.clipped_spread``."""
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
            raise not_finite("the workers", self.engine.precision, ("fp32",))
        return torch.from_numpy(found)

    def _by_candidates(self, asked: Asked, population: int, members: Sequence[Member]) -> list[Any]:
        """Divide a population: return jobs with their candidates and texts."""
        work = self.engine.n_stages - asked.layer
        sizes = self._shares.of(members, population) if members else [population]
        bounds = [0, *np.cumsum(sizes).tolist()]
        jobs = []
        for number, (low, high) in enumerate(pairwise(bounds)):
            if low < high:
                member = members[number] if members else None
                seconds = self._limit(member, (high - low) * work)
                share = replace(asked, candidates=(low, high))
                jobs.append((Job("evaluate", (share,), member, seconds), slice(low, high), slice(None)))
        return jobs

    def _by_texts(self, asked: Asked, members: Sequence[Member]) -> list[Any]:
        """Divide the texts: return jobs with their candidates and texts."""
        parts = self._parted(len(self.engine.pool.members))
        jobs = []
        for number, (rows, named) in enumerate(parts):
            member = members[number] if number < len(members) else None
            share = replace(asked, examples=named)
            jobs.append((Job("evaluate", (share,), member, FIRST), slice(None), rows.numpy()))
        return jobs

    def _parted(self, count: int) -> list[tuple[Tensor, Named]]:
        """Return parts of the texts with about equal numbers of tokens, each with its rows."""
        if count not in self._parts:
            rows = even_parts(self._examples.lengths.cpu(), count)
            self._parts[count] = [(some, self._named(self._examples.select(some))) for some in rows]
        return self._parts[count]

    def _limit(self, member: Member | None, work: float) -> float:
        """Return how many seconds a share may take."""
        speed = self._shares.speed(member)
        return FIRST if speed is None else max(self.engine.patience, SLOWER * work / speed)

    def _asked(self, given: Array, layer: int, projection: Named | None) -> Asked:
        return Asked(self.whole, dict(self._committed), layer, self.engine.put(given), (0, len(given)), projection)

    def _named(self, examples: Examples) -> Named:
        tensors = examples.arrays
        return self.engine.named(tensors, content_name(tensors))
