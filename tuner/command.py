"""Runs the seeds of a command on one engine, one after another."""

from __future__ import annotations

import logging
from typing import Any

from .artifacts.files import write_json
from .artifacts.folder import RunFolder
from .artifacts.model_card import write_card
from .artifacts.result import Result, read_result
from .input.options import Options
from .run.control import Control
from .run.initial_prompt import initial_prompts
from .run.progress import Progress
from .run.seeds import SeedsResult, child_name, ensemble_of
from .run.setup import Setup
from .run.single import Parts, Run

logger = logging.getLogger(__name__)


class Command:
    """Runs seeds on one engine."""

    def __init__(self, setup: Setup, engine: Any, control: Control, progress: Progress) -> None:
        """Bind the objects that the seeds share."""
        self._setup, self._engine, self._control, self._progress = setup, engine, control, progress

    def run(self, options: Options, parts: Parts, folder: RunFolder) -> Result:
        """Run one seed in a folder that ``RunFolder.begin`` prepared."""
        origins = initial_prompts(options, self._engine, self._setup.tokenizer)
        encoder, parts = self._setup.adapted(self._engine, parts, origins)
        model = self._setup.model if options.streams == "original" else None
        run = Run(options, encoder.task, self._engine, parts, origins, model)
        config = self._setup.prompt_config(options, encoder, self._engine.embeddings.digest)
        result = run.execute(folder, self._control, self._progress, config)
        write_card(folder.path)
        if options.plots:
            from .report.drawing import try_plot_run

            try_plot_run(folder.path)
        return result

    def run_seeds(self, options: Options, parts: dict[int, Parts], folder: RunFolder) -> SeedsResult:
        """Run every seed in its own folder, except those that an earlier part of the command finished."""
        for seed, encoded in parts.items():
            self.run_seed(options, seed, encoded, RunFolder(folder.path / child_name(seed)))
        return together(options, folder)

    def run_seed(self, options: Options, seed: int, parts: Parts, child: RunFolder) -> None:
        """Run one of several seeds in its own folder, unless that folder holds the finished run."""
        own = options.changed(seed=seed, seeds=None)
        with child.claim():
            if child.finished:
                logger.info("seed %d is finished in %s", seed, child.path)
                return
            child.check(own)
            child.begin(own)
            self._control.stop_files.append(child.stop)
            self.run(own, parts, child)


def together(options: Options, folder: RunFolder) -> SeedsResult:
    """Write and return the results of all seeds, which must be finished."""
    results = tuple(read_result(folder.path / child_name(seed)) for seed in options.seeds or ())
    result = SeedsResult(results, ensemble_of(results), folder.path)
    write_json(folder.result, result.as_dict())
    return result
