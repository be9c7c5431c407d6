"""A run's curves for TensorBoard and Weights & Biases (``--report_to``).

Both receive the values of metrics.jsonl, against evaluations. A resumed run reports its curves from the beginning, so
the interruption loses no points. If a report fails during a run, the run logs a warning and continues without it.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

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
"""Tags in a report, by field of metrics.jsonl."""
OF_A_LAYER = ("best_loss", "sigma", "axis_ratio")
"""Fields that BBTv2 has per layer."""
logger = logging.getLogger(__name__)
Scalars = Mapping[str, float]


class TensorBoard:
    """Event files in the run's folder; ``tensorboard --logdir`` reads them."""

    def __init__(self, folder: Path, options: Options) -> None:
        """Open a file and hide the points of older files of this run, which it repeats."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=0)
        self._writer.add_text("options", "\n".join(f"    {k}: {v}" for k, v in options.as_dict().items()), 0)

    def scalars(self, evaluations: int, values: Scalars) -> None:
        """Write scalars."""
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, evaluations)

    def final(self, evaluations: int, values: Scalars) -> None:
        """Write the final scalars as points at the end."""
        self.scalars(evaluations, values)

    def close(self) -> None:
        """Flush and close the file."""
        self._writer.close()


class WeightsAndBiases:
    """A run of the project ``$WANDB_PROJECT``, by default bbt-fast; ``WANDB_MODE=offline`` keeps it on this machine."""

    def __init__(self, folder: Path, options: Options) -> None:
        """Start a run, or resume the one that an earlier part of this run started."""
        import wandb

        name = folder / "wandb-run.txt"
        if not name.exists():
            write_whole(name, uuid.uuid4().hex.encode())
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            dir=str(folder), name=folder.name, id=name.read_text(), resume="allow", config=options.as_dict(),
        )  # fmt: skip

    def scalars(self, evaluations: int, values: Scalars) -> None:
        """Send the scalars that the server does not have yet."""
        if evaluations >= self._run.step:
            self._run.log(dict(values), step=evaluations)

    def final(self, evaluations: int, values: Scalars) -> None:
        """Write the final scalars into the run's summary."""
        del evaluations
        self._run.summary.update(dict(values))

    def close(self) -> None:
        """End the run."""
        self._run.finish()


Reporter = TensorBoard | WeightsAndBiases
REPORTERS: dict[str, type[Reporter]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}
"""By name, which is also the name of the package that it imports and of the extra that installs it."""


def report_names(text: str | None) -> list[str]:
    """Return the names in ``--report_to``, in order.

    Raises:
        UsageError: if a name is unknown.
        MissingExtraError: if a package is not installed.
    """
    names = list(dict.fromkeys(part.strip() for part in text.split(","))) if text else []
    for name in names:
        if name not in REPORTERS:
            raise UsageError(f"report_to is {name!r}, but must be {one_of(REPORTERS)}.{suggest(name, REPORTERS)}")
        if find_spec(name) is None:
            raise MissingExtraError(
                f"--report_to {name} needs {name}, which is not installed: `pip install 'bbt-fast[{name}]'`."
            )
    return names


class Reports:
    """All reports of a run, perhaps none."""

    def __init__(self, reporters: dict[str, Reporter], options: Options) -> None:
        """Take open reporters by name."""
        self._reporters = reporters
        self._per_layer = options.algorithm == "bbtv2"

    def line(self, line: Mapping[str, Any]) -> None:
        """Report a line of metrics.jsonl."""
        known = {name: float(line[name]) for name in TAGS if line.get(name) is not None}
        layer = f"/layer_{line['layer']:02d}" if self._per_layer else ""
        scalars = {TAGS[name] + (layer if name in OF_A_LAYER else ""): value for name, value in known.items()}
        self._each(lambda reporter: reporter.scalars(line["evaluations"], scalars))

    def result(self, result: Result) -> None:
        """Report the test metrics."""
        scalars = {"test/zero_shot": result.zero_shot.test, "test/tuned": result.tuned.test}
        self._each(lambda reporter: reporter.final(result.evaluations, scalars))

    def close(self) -> None:
        """Close all reporters."""
        self._each(lambda reporter: reporter.close())

    def _each(self, act: Callable[[Reporter], None]) -> None:
        """Call every reporter; drop one that raises anything, so that the run continues."""
        for name, reporter in list(self._reporters.items()):
            try:
                act(reporter)
            except Exception as error:
                logger.warning("--report_to %s failed (%s); the run continues without it.", name, error)
                logger.debug("reporting failed", exc_info=True)
                del self._reporters[name]


@contextmanager
def open_reports(options: Options, folder: Path) -> Iterator[Reports]:
    """Open a run's reports; close them at the end of the block.

    Raises:
        UsageError: if a report cannot be opened.
    """
    reporters: dict[str, Reporter] = {}
    for name in report_names(options.report_to):
        try:
            reporters[name] = REPORTERS[name](folder, options)
        except Exception as error:
            raise UsageError(f"--report_to {name} cannot be used: {error}") from error
    reports = Reports(reporters, options)
    try:
        yield reports
    finally:
        reports.close()
