"""``tune`` and ``tune_seeds``: the Python API, and ``execute``, which the command line also calls."""

from __future__ import annotations

import logging
from contextlib import closing
from pathlib import Path
from typing import Any

from ..export.errors import BbtFastError, UsageError
from ..export.families import family_of
from .artifacts.folder import RunFolder, new_folder, recorded_engine, resumed
from .artifacts.prompt import read_prompt
from .artifacts.result import Result
from .command import Command, together
from .input.options import Options
from .run.control import Control, RunInterruptedError
from .run.driver import n_generations
from .run.initial_prompt import earlier_prompts
from .run.progress import Progress
from .run.reporting import report_names
from .run.seeds import SeedsResult, child_name
from .run.setup import Setup
from .side_by_side import run_side_by_side
from .tasks.presets import resolve
from .tasks.task import load_task
from .use.push import check_base_model, push

logger = logging.getLogger(__name__)


def tune(options: Options | None = None, /, **changes: Any) -> Result:
    """Tune a prompt for a task on a frozen model, and test it.

    Args:
        options: the options; None for the defaults, which run the demo.
        **changes: any of the ``Options`` by name; they override ``options``.

    Returns:
        The result; its folder is ``result.output_dir``.

    Raises:
        BbtFastError: if an option, the data, the model, the engine or the output folder is unusable.
        RunInterruptedError: if a stop file in the run's folder requested a stop; ``tune(resume=folder)`` resumes it.
    """
    given = given_options(options, changes)
    if given.seeds:
        raise UsageError(f"tune() runs one seed; for several call tune_seeds(seeds={given.seeds}, ...).")
    result = execute(given)
    assert isinstance(result, Result)
    return result


def tune_seeds(options: Options | None = None, /, **changes: Any) -> SeedsResult:
    """Tune and test with several seeds, which share the model and its graphs.

    Args:
        options: the options.
        **changes: any of the ``Options`` by name; they override ``options``. One of the two must set ``seeds``.

    Returns:
        All results, with mean and standard deviation.

    Raises:
        BbtFastError: as ``tune``.
    """
    given = given_options(options, changes)
    if not given.seeds:
        raise UsageError("tune_seeds() needs seeds, such as seeds=(8, 13, 42, 50, 60).")
    result = execute(given)
    assert isinstance(result, SeedsResult)
    return result


def given_options(options: Options | None, changes: dict[str, Any]) -> Options:
    """Return the options with a caller's changes; ``resume`` loads the options of an interrupted run.

    Raises:
        UsageError: if a name or a value is invalid, or if a resumed run cannot change it.
        ArtifactError: if the configuration of the run to resume is damaged.
    """
    written = {} if options is None else options.written()
    written |= changes
    checked = Options.of(**written)
    return resumed(Path(checked.resume), checked, set(written)) if checked.resume else checked


def execute(options: Options, control: Control | None = None, progress: Progress | None = None) -> Result | SeedsResult:
    """Run the options, after checks that find mistakes in them, the data and the folder before any work.

    Args:
        options: the user's, unresolved.
        control: can end a search early; without it only the options' limits and a stop file can.
        progress: receives the state of the searches; None shows nothing.

    Raises:
        BbtFastError: see ``tune``.
    """
    report_names(options.report_to)
    task = load_task(options.task_name)
    options = resolve(options, task.preset)
    control, progress = control or Control(), progress or Progress()
    control.max_time, control.target_metric = options.max_time, options.target_metric
    control.patience = options.patience
    setup = Setup(options, task)
    family_of(setup.config)  # report a missing model before any download of data
    splits = {seed: setup.splits(seed) for seed in options.seeds or (options.seed,)}
    if options.push_to_hub:
        check_base_model(str(options.model_name))
    if options.init_from is not None:
        read_prompt(Path(options.init_from))
    earlier_prompts(options)
    n_generations(options, int(setup.config.num_hidden_layers) if options.algorithm == "bbtv2" else 1)
    folder = RunFolder(Path(options.output_dir)) if options.output_dir else new_folder(options)
    with folder.claim():
        folder.check(options)
        parts = {seed: setup.encode(rows) for seed, rows in splits.items()}
        folder.begin(options)
        control.stop_files.append(folder.stop)
        try:
            if options.seeds and options.workers:
                control.patient = True

                def run_here(seed: int, engine: Any, progress: Progress) -> None:
                    child = RunFolder(folder.path / child_name(seed))
                    Command(setup, engine, control, progress).run_seed(options, seed, parts[seed], child)

                run_side_by_side(options, recorded_engine(folder.path), folder, control, progress, run_here)
                return together(options, folder)
            with closing(setup.load_engine(recorded_engine(folder.path))) as engine:
                control.patient = True
                command = Command(setup, engine, control, progress)
                if options.seeds:
                    return command.run_seeds(options, parts, folder)
                result = command.run(options, parts[options.seed], folder)
        except RunInterruptedError as error:
            raise RunInterruptedError(f"{error} Resume with: bbt-fast tune --resume {folder.path}") from None
    if options.push_to_hub:
        try:
            logger.info("the prompt is at %s", push(folder.path, options.push_to_hub))
        except BbtFastError as error:
            logger.warning("the run is finished, but %s", error)
    return result
