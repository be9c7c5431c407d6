"""How faithfully an engine ranks a population: the populations of a search, their losses, and the figures."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bbt_fast.engine import Engine, Session
from bbt_fast.engine.embeddings import clipped_spread, spread_of
from bbt_fast.export.errors import UsageError
from bbt_fast.export.parity import compare, compare_losses
from bbt_fast.tuner.artifacts.files import digest
from bbt_fast.tuner.artifacts.folder import JOURNAL, recorded_engine
from bbt_fast.tuner.data.encoding import Encoded
from bbt_fast.tuner.run.seeds import child_name
from bbt_fast.tuner.search.bbt import bbt
from bbt_fast.tuner.search.bbtv2 import bbtv2
from bbt_fast.tuner.search.evolution import Evolution
from bbt_fast.tuner.search.generation import Array, Scores
from bbt_fast.tuner.search.losses import cross_entropy_loss
from bbt_fast.tuner.search.metrics import METRICS
from bbt_fast.tuner.search.projection import Projection, draw_projections, normal_scale

from .workload import SIGMA_ALPHA

SEARCHES = {"bbt": bbt, "bbtv2": bbtv2}


@dataclass(frozen=True)
class Population:
    """A generation's prompts, and the prompts that were committed during its evaluation."""

    kind: str
    """"random" for a first generation, "cma" for a later one."""
    seed: int
    generation: int
    layer: int
    prompts: Tensor
    """[P, n, H]."""
    committed: dict[int, Tensor]
    """[n, H] by layer."""

    def logits(self, session: Session) -> Tensor:
        """Evaluate it: [P, N, C]."""
        for layer, prompt in self.committed.items():
            session.commit(prompt, layer)
        return session.evaluate(self.prompts, self.layer).cpu()


@dataclass
class Watch:
    """An oracle that keeps the populations of some generations."""

    session: Session
    labels: Tensor
    projections: Sequence[Projection]
    seed: int
    wanted: set[int]
    journal: Sequence[dict[str, Any]] = ()
    """The generations of the same search in a run; if empty, the session answers."""
    kept: list[Population] = field(default_factory=list)
    committed: dict[int, Tensor] = field(default_factory=dict)
    generation: int = 0

    def evaluate(self, candidates: Array, layer: int) -> Scores:
        """Score candidates [P, d]."""
        prompts = self.projections[layer](candidates)
        if self.generation in self.wanted:
            kind = "cma" if self.generation >= len(self.projections) else "random"
            self.kept.append(Population(kind, self.seed, self.generation, layer, prompts, dict(self.committed)))
        if self.journal:
            record = self.journal[self.generation]
            if record["candidates"] != digest(candidates.tobytes()):
                raise ValueError(f"generation {self.generation} of the journal is of another search")
            self.generation += 1
            return Scores(np.array(record["fitness"]), float("nan"))
        self.generation += 1
        logits = self.session.evaluate(prompts, layer)
        return Scores(cross_entropy_loss(logits, self.labels, METRICS["accuracy"]).double().cpu().numpy(), float("nan"))

    def commit(self, candidate: Array, layer: int) -> None:
        """Fix a layer's prompt."""
        self.committed[layer] = self.projections[layer](candidate[None])[0]
        self.session.commit(self.committed[layer], layer)


def journal_of(runs: Path, algorithm: str, seed: int) -> list[dict[str, Any]]:
    """Return the generations in the journal of a plain fp32 run of search.py, whatever its engine and budget.

    Args:
        runs: the folder of the runs on one task with one model.
        algorithm: bbt or bbtv2.
        seed: of the run.

    Raises:
        UsageError: if there is no such run.
    """
    for folder in sorted(runs.glob(f"{algorithm}[-+]*/{child_name(seed)}")):
        plain = re.fullmatch(rf"{algorithm}([-+]\w+-fp32)?-\w+", folder.parent.name)
        if plain and recorded_engine(folder).get("precision") == "fp32":
            lines = (folder / JOURNAL).read_text(encoding="utf-8").splitlines()
            return [record for record in map(json.loads, lines) if record.get("kind") == "generation"]
    raise UsageError(
        f"{runs} has no run of {algorithm} in fp32 with seed {seed}. Make one with search.py and the same --runs, or "
        "leave --runs out."
    )


def populations(
    engine: Engine,
    data: Encoded,
    algorithm: str,
    seed: int,
    wanted: set[int],
    journal: Sequence[dict[str, Any]] = (),
    dim: int = 500,
    popsize: int = 20,
) -> list[Population]:
    """Search with an engine, or repeat the search of a journal; return the populations of the wanted generations."""
    session = engine.open(data.examples)
    sigma, alpha = SIGMA_ALPHA[algorithm]
    layers = range(engine.staged.n_stages)
    spreads = [
        spread_of(engine.word_embeddings),
        *(clipped_spread(session.hidden_states(layer)) for layer in layers[1:]),
    ]
    scales = [normal_scale(spread, dim, alpha, sigma) for spread in spreads]
    origin = torch.zeros(engine.n_prompt_tokens, engine.hidden_size)
    projections = draw_projections("normal", seed, dim, scales, [origin] * len(layers), engine.device)
    watch = Watch(session, data.labels.to(engine.device), projections, seed, wanted, journal)
    last = max(wanted) + 1
    evolutions = [Evolution(dim, sigma, popsize, seed=seed, layer=layer) for layer in layers]
    for _ in SEARCHES[algorithm](watch, evolutions, last):
        pass
    return watch.kept


def figures(population: Population, reference: Tensor, found: Tensor, labels: Tensor) -> dict[str, Any]:
    """Compare an engine's answers [P, N, C] to a population with the reference's."""
    each = compare(reference, found)
    expected, losses = (cross_entropy_loss(x.double(), labels, METRICS["accuracy"]) for x in (reference, found))
    return {
        "kind": population.kind,
        "seed": population.seed,
        "generation": population.generation,
        "layer": population.layer,
        **compare_losses(expected[:, None], losses[:, None], each.max_logit_difference).as_dict(),
        "kendall_tau": kendall_tau(expected, losses),
        "best_kept": bool(expected.argmin() == losses.argmin()),
    }


def kendall_tau(a: Tensor, b: Tensor) -> float:
    """Return the rank correlation tau of two vectors: the share of concordant pairs minus that of discordant ones."""
    first, second = ((x[:, None] - x[None]).sign() for x in (a, b))
    upper = torch.triu(torch.ones_like(first), diagonal=1).bool()
    return float((first * second)[upper].mean())


def summary(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield each kind of population with its figures: mean, and least or largest."""
    for kind in ("random", "cma"):
        some = [row for row in rows if row["kind"] == kind]
        if some:
            yield (
                kind,
                {
                    "populations": len(some),
                    "spearman": mean(row["spearman"] for row in some),
                    "spearman_min": min(row["spearman"] for row in some),
                    "kendall_tau": mean(row["kendall_tau"] for row in some),
                    "mean_loss_error": mean(row["mean_loss_error"] for row in some),
                    "loss_spread": mean(row["loss_spread"] for row in some),
                    "max_logit_difference": max(row["max_logit_difference"] for row in some),
                    "best_kept": mean(row["best_kept"] for row in some),
                    "seconds": min(row["seconds"] for row in some),
                },
            )
