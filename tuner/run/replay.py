"""An oracle that answers from the journal until it ends, and from the engine after that.

CMA-ES is deterministic given its seed and the fitness values. A search through this oracle therefore reaches the end of
the journal within seconds, and continues as if it had never stopped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...export.errors import ArtifactError
from ..artifacts.files import digest
from ..artifacts.journal import Journal, Record
from ..search.generation import Array, Oracle, Scores
from ..search.objective import Score


class Replay:
    """Wraps an oracle and the scorer of the development set; writes every new answer into the journal."""

    def __init__(self, oracle: Oracle, develop: Callable[[Sequence[Array]], Score], journal: Journal) -> None:
        """Take the journal's records after its header."""
        self._oracle, self._develop, self._journal = oracle, develop, journal
        self._records: deque[Record] = deque(journal.records[1:])
        self._line = 1
        self._commits: dict[int, Array] = {}
        """By layer, the commits that the engine has not received yet."""

    @property
    def replaying(self) -> bool:
        """Whether the next answer comes from the journal."""
        return bool(self._records)

    @property
    def development_next(self) -> bool:
        """Whether the next record is a score on the development set."""
        return bool(self._records) and self._records[0].get("kind") == "development"

    def evaluate(self, candidates: Array, layer: int) -> Scores:
        """Score candidates [P, d] for a layer's prompt.

        Raises:
            ArtifactError: if the journal holds other candidates.
        """
        question = {"kind": "generation", "layer": layer, "candidates": digest(candidates.tobytes())}
        if self._records:
            fitness = self._answer(question, "fitness")
            if not isinstance(fitness, list) or len(fitness) != len(candidates):
                raise self._foreign(f"it has not {len(candidates)} fitness values")
            return Scores(np.array([self._number(value) for value in fitness]), float("nan"))
        for at, candidate in self._commits.items():
            self._oracle.commit(candidate, at)
        self._commits = {}
        scores = self._oracle.evaluate(candidates, layer)
        self._journal.append(question | {"fitness": scores.fitness.tolist()})
        return scores

    def commit(self, candidate: Array, layer: int) -> None:
        """Fix a layer's prompt, given as the candidate [d], for all later calls."""
        self._commits[layer] = candidate

    def moved(self) -> None:
        """Reset the commits for the next embedding, whose p0 holds the committed prompts."""
        self._commits = {layer: np.zeros_like(candidate) for layer, candidate in self._commits.items()}

    def develop(self, best: Sequence[Array]) -> Score:
        """Score the best prompts so far, [d] per layer, on the development set.

        Raises:
            ArtifactError: if the journal holds another record.
        """
        question = {"kind": "development", "candidates": digest(*(candidate.tobytes() for candidate in best))}
        if self._records:
            answer = self._answer(question, "score")
            if not isinstance(answer, list) or len(answer) != 2:
                raise self._foreign("it has no score")
            return Score(*map(self._number, answer))
        score = self._develop(best)
        self._journal.append(question | {"score": [score.metric, score.loss]})
        return score

    def _answer(self, question: Record, name: str) -> Any:
        record = self._records.popleft()
        self._line += 1
        if {key: value for key, value in record.items() if key != name} != question:
            raise self._foreign("its candidates differ from those that these options and this seed lead to")
        return record.get(name)

    def _number(self, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._foreign(f"{value!r} is not a number")
        return float(value)

    def _foreign(self, why: str) -> ArtifactError:
        return ArtifactError(
            f"{self._journal.path}, line {self._line}, cannot be replayed: {why}. It was written on another kind of "
            "CPU, by other versions of bbt-fast, cma or numpy, or by hand. Resume it where it was written, or start "
            "again in another --output_dir."
        )
