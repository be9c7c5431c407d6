"""A run's curves for TensorBoard and Weights & Biases, as ``--report_to`` asks.

Both get what metrics.jsonl gets, against evaluations. A run that is resumed reports its curves from the beginning, so
that nothing depends on what was on its way when it was interrupted. A report that fails in a run is given up with a
warning; the run goes on.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from ...export.errors import MissingExtraError, UsageError
from ..artifacts.files import write_whole
from ..artifacts.result import Result
from ..input.coerce import one_of, suggest
from ..input.options import Options

PROJECT = "bbt-fast"
TAGS = {
    "loss": "loss/best", "mean_loss": "loss/mean", "best_loss": "loss/best_so_far", "dev_loss": "loss/dev",
    "train": "metric/train", "dev": "metric/dev", "sigma": "cma/sigma", "axis_ratio": "cma/axis_ratio",
}  # fmt: skip
"""Fields of metrics.jsonl, and what they are called in a report."""
OF_A_LAYER = ("best_loss", "sigma", "axis_ratio")
"""What BBTv2 has of every layer."""
logger = logging.getLogger(__name__)
Scalars = Mapping[str, float]


class Reporter(Protocol):
    """Takes a run's scalars."""

    def scalars(self, evaluations: int, values: Scalars) -> None:
        """Take what is known after so many evaluations."""

    def final(self, evaluations: int, values: Scalars) -> None:
        """Take what the run came to."""

    def close(self) -> None:
        """See everything onto its way."""


class TensorBoard:
    """Event files in the run's folder; ``tensorboard --logdir`` reads them."""

    def __init__(self, folder: Path, options: Options) -> None:
        """Begin a file; what older ones of this run hold is hidden, since all of it is written again."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=0)
        self._writer.add_text("options", "\n".join(f"    {k}: {v}" for k, v in options.as_dict().items()), 0)

    def scalars(self, evaluations: int, values: Scalars) -> None:
        """Write scalars."""
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, evaluations)

    def final(self, evaluations: int, values: Scalars) -> None:
        """Write them as points at the end."""
        self.scalars(evaluations, values)

    def close(self) -> None:
        """Flush and close the file."""
        self._writer.close()


class WeightsAndBiases:
    """A run of the project ``$WANDB_PROJECT``, by default bbt-fast; ``WANDB_MODE=offline`` keeps it on this machine."""

    def __init__(self, folder: Path, options: Options) -> None:
        """Begin a run, or go on with the one that an earlier part of this run began."""
        import wandb

        name = folder / "wandb-run.txt"
        if not name.exists():
            write_whole(name, uuid.uuid4().hex.encode())
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            dir=str(folder), name=folder.name, id=name.read_text(), resume="allow", config=options.as_dict(),
        )  # fmt: skip

    def scalars(self, evaluations: int, values: Scalars) -> None:
        """Send scalars, but for those that the server has."""
        if evaluations >= self._run.step:
            self._run.log(dict(values), step=evaluations)

    def final(self, evaluations: int, values: Scalars) -> None:
        """Put them into the run's summary, which stands beside its curves."""
        del evaluations
        self._run.summary.update(dict(values))

    def close(self) -> None:
        """End the run."""
        self._run.finish()


@dataclass(frozen=True)
class Row:
    """A kind of report."""

    reporter: type[TensorBoard | WeightsAndBiases]
    requires: str
    """The package that it imports."""


REPORTERS = {"tensorboard": Row(TensorBoard, "tensorboard"), "wandb": Row(WeightsAndBiases, "wandb")}


def report_names(text: str | None) -> list[str]:
    """Return the reports that an option asks for, in order.

    Raises:
        UsageError: if there is none of that name.
        MissingExtraError: if one's package is not installed.
    """
    names = list(dict.fromkeys(part.strip() for part in text.split(","))) if text else []
    for name in names:
        if name not in REPORTERS:
            raise UsageError(f"report_to is {name!r}, but must be {one_of(REPORTERS)}.{suggest(name, REPORTERS)}")
        requires = REPORTERS[name].requires
        if find_spec(requires) is None:
            raise MissingExtraError(
                f"--report_to {name} needs {requires}, which is not installed: `pip install 'bbt-fast[{name}]'`."
            )
    return names


class Reports:
    """All reports of a run; none is a report too."""

    def __init__(self, reporters: dict[str, Reporter], options: Options) -> None:
        """Take open reporters by name."""
        self._reporters = reporters
        self._deep = options.algorithm == "bbtv2"

    def line(self, line: Mapping[str, Any]) -> None:
        """Report a line of metrics.jsonl."""
        known = {name: float(line[name]) for name in TAGS if line.get(name) is not None}
        layer = f"/layer_{line['layer']:02d}" if self._deep else ""
        scalars = {TAGS[name] + (layer if name in OF_A_LAYER else ""): value for name, value in known.items()}
        for name, reporter in list(self._reporters.items()):
            with self._spared(name):
                reporter.scalars(line["evaluations"], scalars)

    def result(self, result: Result) -> None:
        """Report what the run came to."""
        scalars = {"test/zero_shot": result.zero_shot.test, "test/tuned": result.tuned.test}
        for name, reporter in list(self._reporters.items()):
            with self._spared(name):
                reporter.final(result.evaluations, scalars)

    def close(self) -> None:
        """Close all."""
        for name, reporter in list(self._reporters.items()):
            with self._spared(name):
                reporter.close()

    @contextmanager
    def _spared(self, name: str) -> Iterator[None]:
        """Keep a reporter's failure from the run; whatever a third party's library raises counts."""
        try:
            yield
        except Exception as error:
            logger.warning("--report_to %s failed (%s); the run continues without it.", name, error)
            logger.debug("reporting failed", exc_info=True)
            del self._reporters[name]


@contextmanager
def open_reports(options: Options, folder: Path) -> Iterator[Reports]:
    """Open a run's reports, and close them at the end of the block.

    Raises:
        UsageError: if one cannot be opened.
    """
    reporters: dict[str, Reporter] = {}
    for name in report_names(options.report_to):
        try:
            reporters[name] = REPORTERS[name].reporter(folder, options)
        except Exception as error:
            raise UsageError(f"--report_to {name} cannot be used: {error}") from error
    reports = Reports(reporters, options)
    try:
        yield reports
    finally:
        reports.close()
