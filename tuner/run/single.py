"""One run: the search and the test of a seed, and the files that they leave in its folder."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...export.errors import ArtifactError
from ..artifacts.answers import Answers
from ..artifacts.economics import Memory, Queries, forget_peak
from ..artifacts.files import digest, write_json
from ..artifacts.folder import RunFolder
from ..artifacts.journal import Journal
from ..artifacts.prompt import save_prompt
from ..artifacts.prompt_config import PromptConfig
from ..artifacts.result import Result, Seconds, Tuned, ZeroShot, versions
from ..data.encoding import Encoded
from ..input.options import Options
from ..search.generation import Array
from ..search.losses import LOSSES
from ..search.metrics import METRICS, confusion
from ..search.objective import Objective, Score, Yardstick, answer, project_all
from ..search.projection import NONE, FullSpace, Space, draw_projections, normal_scale
from ..tasks.task import Task
from . import original
from .control import Control, RunInterruptedError
from .driver import Found, Search, n_generations, start_evolutions
from .initial_prompt import earlier_prompts
from .progress import Progress
from .replay import Replay
from .reporting import Reports, open_reports

JOURNAL_FORMAT = 3
"""Increases whenever the same fitness leads to other candidates than before; 3: CMA-ES on whole populations."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """A seed's data, encoded for the model."""

    train: Encoded
    dev: Encoded
    test: Encoded

    @property
    def counts(self) -> dict[str, int]:
        """The number of examples in each part, and of truncated examples in all."""
        parts = {"train": self.train, "dev": self.dev, "test": self.test}
        counts = {name: len(part.labels) for name, part in parts.items()}
        return counts | {"truncated": sum(part.truncated for part in parts.values())}


class Run:
    """A seed's run in a claimed folder."""

    def __init__(
        self, options: Options, task: Task, engine: Any, parts: Parts, origins: Tensor, model: Any = None
    ) -> None:
        """Bind the parts of a run.

        Args:
            options: resolved.
            task: the task.
            engine: loaded with the cuts that the algorithm needs.
            parts: the seed's data.
            origins: p0, [1 or L, n, H].
            model: the engine's model; only ``--streams original`` needs it.
        """
        assert options.loss_type is not None
        self.options, self.task, self.engine, self.parts = options, task, engine, parts
        self.origins, self.model = origins, model
        earlier = earlier_prompts(options, origins.shape)
        self.earlier = torch.stack(earlier) if earlier else None
        self.yardstick = Yardstick(LOSSES[options.loss_type], METRICS[task.metric])

    def execute(
        self, folder: RunFolder, control: Control, progress: Progress, config: PromptConfig | None = None
    ) -> Result:
        """Start or resume the search, then test the prompt and write the result.

        Args:
            folder: claimed and begun.
            control: can end the search early.
            progress: receives the state of the search.
            config: the prompt's description, written once the folder's journal is known to fit; None for none.

        Raises:
            RunInterruptedError: if a signal or a stop file requested a stop.
            ArtifactError: if the folder's journal belongs to another run.
            UsageError: if a report cannot be opened.
        """
        with open_reports(self.options, folder.path) as reports:
            return self._execute(folder, control, progress, config, reports)

    def _execute(
        self, folder: RunFolder, control: Control, progress: Progress, config: PromptConfig | None, reports: Reports
    ) -> Result:
        forget_peak()
        options = self.options
        session = self.engine.open(self.parts.train.examples)
        draw = self._drawn_from(session)
        objective = Objective(session, self.parts.train.labels, draw(0, self.origins), self.yardstick)
        dev_session = self.engine.open(self.parts.dev.examples)

        def develop(candidates: Sequence[Array]) -> Score:
            return self._score(dev_session, self.parts.dev, project_all(objective.projections, candidates))

        def save(prompts: Tensor) -> None:
            about = {"model": options.model_name, "task": self.task.name, "algorithm": options.algorithm}
            save_prompt(folder.prompt, prompts, about | {"mode": options.cat_or_add, "seed": options.seed})

        with closing(Journal(folder.journal)) as journal:
            self._check_header(journal)
            if config is not None:
                config.write(folder.path)
            replay = Replay(objective, develop, journal)
            found = Search(options, folder, objective, replay, draw, save, control, progress, reports.line).run()
        matrices = sum(projection.nbytes for projection in objective.projections)
        device = self.engine.device if self.engine.holds_model else None
        memory = Memory.of(found.held_bytes, matrices, device)
        save(found.kept.prompts)
        result = self._tested(found, memory, session, dev_session, folder, control)
        write_json(folder.result, result.as_dict())
        reports.result(result)
        return result

    def _drawn_from(self, session: Any) -> Callable[[int, Tensor], Sequence[Space]]:
        """Return a function that draws projections, given an embedding's number and p0, [1 or L, n, H].

        Their scales follow the papers, measured with the run's own p0 in all layers.
        """
        options, engine = self.options, self.engine
        assert options.alpha is not None
        assert options.sigma is not None
        spreads = [engine.embeddings.spread]
        for layer, origin in enumerate(self.origins):
            if bool(origin.any()):
                session.commit(origin, layer=layer)
        if options.streams == "original":
            dim, layers = options.intrinsic_dim, len(self.origins)
            rounds = n_generations(options, layers) // layers
            first = start_evolutions(options, dim, layers, rounds)[0].ask().candidates[0]
            drawn = original.projections(
                self.model, options, self.parts.train.examples, self.origins, spreads[0], first, engine.device
            )
            return lambda embedding, origins: drawn
        if options.random_proj != "uniform":
            spreads += [session.clipped_spread(layer) for layer in range(1, len(self.origins))]
        else:
            spreads *= len(self.origins)
        dim = 1 if options.random_proj == NONE else options.intrinsic_dim
        scales = [normal_scale(spread, dim, options.alpha, options.sigma) for spread in spreads]
        for layer, spread in enumerate(spreads):
            logger.debug("layer %d: values spread by %.4f, projection by %.6f", layer, spread, scales[layer])

        def draw(embedding: int, origins: Tensor) -> Sequence[Space]:
            if options.random_proj == NONE:
                there = origins.to(engine.device, torch.float32)
                return [FullSpace(scale, origin) for scale, origin in zip(scales, there, strict=True)]
            return draw_projections(
                options.random_proj, options.seed, dim, scales, list(origins), engine.device, embedding, self.earlier
            )

        return draw

    def _score(self, session: Any, part: Encoded, prompts: Tensor) -> Score:
        """Score prompts [L, n, H]."""
        loss, metric = self.yardstick(answer(session, prompts[None]), part.labels)
        return Score(float(metric[0]), float(loss[0]))

    def _check_header(self, journal: Journal) -> None:
        """Write the inputs that determine the run's numbers into a new journal; refuse an old one with others."""
        engine = self.engine
        header = {
            "kind": "start",
            "format": JOURNAL_FORMAT,
            "engine": engine.name,
            "precision": engine.precision,
            "device": engine.runs_on,
            "embeddings": engine.embeddings.digest,
            "train": _digest(self.parts.train),
            "dev": _digest(self.parts.dev),
            "origins": digest(_bytes(self.origins)),
        }
        if self.earlier is not None:
            header["earlier"] = digest(_bytes(self.earlier))
        if engine.name == "remote":
            header["behind"] = engine.facts["engine"]
        if not journal.records:
            journal.append(header)
            return
        old = journal.records[0]
        written = old.get("format")
        if written != JOURNAL_FORMAT:
            raise ArtifactError(
                f"{journal.path} cannot be resumed: format was {written!r} and is now {JOURNAL_FORMAT!r}; "
                "CMA-ES draws other candidates since. Resume it with the version of bbt-fast that started it, or start "
                "again in another --output_dir."
            )
        different = [f"{k} was {old.get(k)!r} and is now {v!r}" for k, v in header.items() if old.get(k) != v]
        if different:
            raise ArtifactError(
                f"{journal.path} cannot be resumed: {'; '.join(different)}. Use the model, data and engine it was "
                "started with, or start again in another --output_dir."
            )

    def _tested(
        self, found: Found, memory: Memory, session: Any, dev_session: Any, folder: RunFolder, control: Control
    ) -> Result:
        """Score p0 and the kept prompt on all parts; no other code of a run reads the test set."""
        options, engine, parts, prompts = self.options, self.engine, self.parts, found.kept.prompts
        began = time.perf_counter()
        logger.info("testing on %d examples", len(parts.test.labels))
        zero_dev = self._score(dev_session, parts.dev, self.origins.to(engine.device))
        train = self._score(session, parts.train, prompts)
        sets = torch.stack([self.origins.to(engine.device), prompts])

        def between() -> None:
            if (asked_by := control.interrupted_by) is not None:
                raise RunInterruptedError(
                    f"stopped by {asked_by} after the search, before the test. The best prompt is {folder.prompt}."
                )

        logits = test_logits(engine, parts.test, sets, options.batch_size, between)
        _, test = self.yardstick(logits, parts.test.labels)
        Answers(logits[1], parts.test.labels.cpu(), _digest(parts.test, words=False)).write(folder.path)
        dim = prompts[0].numel() if options.random_proj == NONE else options.intrinsic_dim
        placeholders = engine.n_prompt_tokens if options.cat_or_add == "add" else 0
        return Result(
            model=str(options.model_name),
            task=self.task.name,
            engine=engine.name,
            algorithm=options.algorithm,
            mode=options.cat_or_add,
            precision=engine.precision,
            device=engine.place,
            seed=options.seed,
            budget=int(options.budget or 0),
            evaluations=found.evaluations,
            metric=self.task.metric,
            zero_shot=ZeroShot(dev=zero_dev.metric, test=float(test[0])),
            tuned=Tuned(train=train.metric, dev=found.kept.score.metric, test=float(test[1])),
            seconds=Seconds(engine.export_seconds, found.seconds, time.perf_counter() - began),
            evals_per_s=found.evaluations / found.seconds,
            optimizer_overhead=None if math.isnan(found.overhead) else found.overhead,
            stopped_by=found.stopped_by,
            examples=parts.counts,
            classes=list(self.task.labels),
            confusion=confusion(logits[1], parts.test.labels).tolist(),
            queries=Queries.of(found.evaluations, found.scored, parts.train, dim, prompts[0], placeholders, session),
            memory=memory,
            parity=dict(engine.parity),
            versions=versions(),
            output_dir=folder.path,
        )


def test_logits(engine: Any, part: Encoded, prompts: Tensor, batch_size: int, between: Callable[[], None]) -> Tensor:
    """Answer K sets of prompts on a part of any size: [K, N, C].

    Args:
        engine: loaded.
        part: the data; batches of similar lengths bound the memory.
        prompts: [K, L, n, H].
        batch_size: texts in a batch.
        between: called before each batch; may raise to stop.
    """
    order = torch.argsort(part.examples.lengths, stable=True)
    logits = torch.empty(len(prompts), len(order), len(part.examples.words_of_classes))
    for rows in torch.split(order, batch_size):
        between()
        logits[:, rows] = answer(engine.open(part.examples.select(rows)), prompts).float().cpu()
    return logits


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().float().contiguous().numpy().tobytes()


def _digest(part: Encoded, words: bool = True) -> str:
    """Return a digest of the texts and their classes and, unless asked otherwise, of the label words."""
    it = part.examples
    tensors: list[Tensor | None] = [it.input_ids, it.attention_mask, part.labels]
    tensors += [it.label_token_ids, it.label_classes, it.label_bias] if words else []
    return digest(*(t.cpu().contiguous().numpy().tobytes() for t in tensors if t is not None))
