"""The folder of a run: its files, its lock, and the checks before a run is resumed in it.

| file | contents |
|---|---|
| config.json | the resolved options |
| journal.jsonl | every generation's fitness and every development score; a run resumes from it |
| metrics.jsonl | curves |
| prompt.safetensors | the kept prompt, [1 or L, n, H] |
| bbt_config.json | the prompt's model, task and mode, which its use requires |
| test_logits.safetensors | the kept prompt's answers on the test set, the input of the seeds' ensemble |
| result.json | the result; it is written last and marks a finished run |
| plots | drawn after the result; nothing reads them |
| tensorboard, wandb | the reports of --report_to |
| README.md | a model card |
| stop | created by the user to end the run after the current generation |
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock

from ...export.errors import ArtifactError, BbtFastError, UsageError
from ..input.options import Options
from ..tasks.presets import absolute
from .files import read_json, sweep, unwritable, write_json
from .journal import first_record
from .prompt import read_prompt
from .prompt_config import PROMPT_CONFIG
from .result import RESULT

CONFIG, JOURNAL, METRICS, PROMPT, STOP, LOCK = (
    "config.json", "journal.jsonl", "metrics.jsonl", "prompt.safetensors", "stop", ".lock",
)  # fmt: skip
RUNS = Path("runs")
"""Parent of the folders of runs without --output_dir."""
FREE = frozenset({
    "output_dir", "resume", "max_time", "print_every", "parallel", "batch_size", "plots", "report_to", "push_to_hub",
    "url", "api_key", "workers", "ray_address",
})  # fmt: skip
"""Options that may change when a run is resumed, since its result does not depend on them."""
logger = logging.getLogger(__name__)


class RunFolder:
    """A run's folder, opened for writing."""

    def __init__(self, path: Path, *, fresh: bool = False) -> None:
        """Name the folder; ``fresh`` says that it was created for this run, whose failure may remove it."""
        self.path = path
        self.journal, self.metrics, self.prompt = path / JOURNAL, path / METRICS, path / PROMPT
        self.result, self.stop, self.config = path / RESULT, path / STOP, path / CONFIG
        self._fresh = fresh

    @property
    def finished(self) -> bool:
        """Whether the folder holds a finished run; a run with a damaged result can be resumed from its journal."""
        if not self.result.exists():
            return False
        try:
            read_json(self.result)
        except ArtifactError as error:
            logger.warning("%s The run recreates it from the journal.", error)
            return False
        return True

    @contextmanager
    def claim(self) -> Iterator[None]:
        """Lock the folder until the end of the block, or of this process.

        A run that fails before it has a journal removes its files.

        Raises:
            ArtifactError: if another process holds the lock, or the folder is not writable.
        """
        try:
            self._fresh |= not self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(self.path / LOCK, timeout=0)
            lock.acquire()
            sweep(self.path)
        except filelock.Timeout:
            raise ArtifactError(
                f"another process is running in {self.path}. Wait for it, or choose another --output_dir."
            ) from None
        except (FileExistsError, NotADirectoryError) as error:
            raise ArtifactError(
                f"{self.path} cannot be a run's folder, as {error.filename or self.path} is a file. Choose another "
                "--output_dir."
            ) from error
        except OSError as error:
            raise unwritable(self.path, error) from error
        began = not self.config.exists()
        try:
            yield
        except BbtFastError:
            if began and self._names() <= {CONFIG, PROMPT_CONFIG}:
                for name in self._names():
                    (self.path / name).unlink(missing_ok=True)
            raise
        finally:
            lock.release()
            if not self.config.exists():
                (self.path / LOCK).unlink(missing_ok=True)
                with suppress(OSError):
                    if self._fresh:
                        self.path.rmdir()
                    if self.path.parent == RUNS:
                        RUNS.rmdir()

    def check(self, options: Options) -> None:
        """Refuse a folder that cannot take a run with these options.

        Raises:
            ArtifactError: if it holds a finished run, a run with other options, or other files.
        """
        if self.finished:
            raise ArtifactError(
                f"{self.path} already holds a finished run (see its {RESULT}): choose another --output_dir."
            )
        if not holds_run(self.path):
            if self.journal.exists():
                raise ArtifactError(
                    f"{self.path} holds a run, but its {CONFIG} is missing, so its options are unknown: choose another "
                    "--output_dir."
                )
            if others := sorted(self._names() - {STOP}):
                raise ArtifactError(
                    f"{self.path} holds {others[0]!r}, but no run of bbt-fast: choose an empty or a new --output_dir."
                )
            return
        if different := differences(self.path, options):
            raise ArtifactError(
                f"{self.path} already holds another run: {'; '.join(different)}. Choose another --output_dir, or "
                f"resume that run: bbt-fast tune --resume {self.path}"
            )

    def begin(self, options: Options) -> None:
        """Write the configuration of a new run, or warn about the lost files of a resumed one.

        Raises:
            ArtifactError: if the folder is not writable.
        """
        try:
            self.stop.unlink(missing_ok=True)
        except OSError as error:
            raise unwritable(self.stop, error) from error
        if self.config.exists():
            self._warn_of_losses()
        else:
            # The result does not depend on the server's URL, but a resumed run needs it.
            write_json(self.config, identity(options) | ({"url": options.url} if options.url else {}))

    def _warn_of_losses(self) -> None:
        """Warn about lost files of an interrupted run, which the resumed run recreates."""
        journal = self.journal.is_file() and self.journal.stat().st_size > 0
        if not journal and (self.metrics.exists() or self.prompt.exists()):
            logger.warning("%s is missing or empty: the run starts from the beginning.", self.journal)
        try:
            if self.prompt.exists() and not read_prompt(self.prompt)[1]:
                raise ArtifactError(f"{self.prompt} is damaged: it has no description of its prompt.")
        except BbtFastError as error:
            logger.warning("%s The run writes it again.", error)

    def _names(self) -> set[str]:
        if not self.path.is_dir():
            return set()
        return {path.name for path in self.path.iterdir() if not path.name.startswith(".")}


def identity(options: Options) -> dict[str, Any]:
    """Return the options that a run's result depends on."""
    return {name: value for name, value in options.as_dict().items() if name not in FREE}


def differences(folder: Path, options: Options, but: Collection[str] = ()) -> list[str]:
    """Return the options in which the run in a folder differs from a run with these, as texts.

    Args:
        folder: holds a run's configuration.
        options: resolved.
        but: the names of more options that may differ.

    Raises:
        UsageError: if there is no run.
        ArtifactError: if its configuration is damaged.
    """
    old, new = identity(read_config(folder)), identity(options)
    return [
        f"{name} was {old[name]!r} and is now {new[name]!r}"
        for name in new
        if old[name] != new[name] and name not in but
    ]


def holds_run(folder: Path) -> bool:
    """Return whether a folder has a run's configuration, damaged or not; a model's file of that name is none."""
    path = folder / CONFIG
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return path.is_file()
    return not isinstance(values, dict) or "model_type" not in values


def read_config(folder: Path) -> Options:
    """Return the options of the run in a folder.

    Raises:
        UsageError: if there is no run.
        ArtifactError: if its configuration is damaged.
    """
    path = folder / CONFIG
    if not holds_run(folder):
        raise UsageError(f"{folder} holds no run of bbt-fast: it has no {CONFIG} of one.")
    values = read_json(path)
    try:
        return Options.of(**values)
    except (BbtFastError, TypeError) as error:
        raise ArtifactError(f"{path} is damaged ({error}): start again in another --output_dir.") from error


def resumed(folder: Path, given: Options, written: set[str]) -> Options:
    """Return the options of the run in a folder, with the changes that a resumed run allows.

    Args:
        folder: the unfinished run's.
        given: the current options.
        written: the names of those that the user set.

    Raises:
        UsageError: if the folder holds no run, or an option cannot change.
        ArtifactError: if the run's configuration is damaged.
    """
    old, given = read_config(folder), absolute(given)
    changes = {name: getattr(given, name) for name in written - {"resume", "output_dir"}}
    for name, value in changes.items():
        if name not in FREE and getattr(old, name) != value:
            raise UsageError(
                f"{name} is {value!r}, but the run in {folder} was started with {getattr(old, name)!r}; --resume "
                f"cannot change it. Leave it out, or start again in another --output_dir."
            )
    return old.changed(**{name: value for name, value in changes.items() if name in FREE}, output_dir=str(folder))


def latest_run() -> Path | None:
    """Return the unfinished run below ./runs with the latest change, if there is one."""
    folders = [path.parent for path in RUNS.glob(f"*/{CONFIG}")]
    begun = [folder for folder in folders if holds_run(folder) and not (folder / RESULT).exists()]
    return max(begun, key=lambda folder: max(path.stat().st_mtime for path in folder.iterdir()), default=None)


def recorded_engine(folder: Path) -> dict[str, str]:
    """Return the engine, precision and device in the journal of a run, or of one of its seeds."""
    for path in sorted([folder / JOURNAL, *folder.glob(f"*/{JOURNAL}")]):
        header = first_record(path) or {}
        if all(isinstance(header.get(name), str) for name in ("engine", "precision", "device")):
            return {"name": header["engine"], "precision": header["precision"], "device": header["device"]}
    return {}


def members(folder: Path) -> list[Path]:
    """Return the folders of the seeds of a finished command; for a single run, the folder itself."""
    if (folder / PROMPT_CONFIG).exists() or not (folder / RESULT).exists():
        return [folder]
    return sorted(child.parent for child in folder.glob(f"*/{PROMPT_CONFIG}")) or [folder]


def new_folder(options: Options) -> RunFolder:
    """Create a new folder below ./runs.

    Raises:
        ArtifactError: if that fails.
    """
    name = f"{Path(options.task_name).stem}-{options.algorithm}"
    name += f"-{len(options.seeds)}seeds" if options.seeds else f"-seed{options.seed}"
    path, attempt = RUNS / name, 1
    while True:
        try:
            path.mkdir(parents=True)
            return RunFolder(path, fresh=True)
        except FileExistsError:
            attempt += 1
            path = RUNS / f"{name}-{attempt}"
        except OSError as error:
            raise unwritable(path, error) from error
