"""Draws a finished run's plots; a failure does not affect the run."""

from __future__ import annotations

import logging
from pathlib import Path

logger = logging.getLogger(__name__)


def try_plot_run(folder: Path) -> None:
    """Draw a finished run's plots; log a warning if that fails in any way."""
    try:
        from .plots import plot_run

        plot_run(folder)
    except Exception as error:
        logger.warning(
            "the plots of %s could not be drawn (%s). The run is complete; try again with: bbt-fast report %s --plots",
            folder, error, folder,
        )  # fmt: skip
        logger.debug("plotting failed", exc_info=True)
