"""Drawing a finished run's plots in such a way that nothing which goes wrong with them can harm it."""

from __future__ import annotations

import logging
from pathlib import Path

logger = logging.getLogger(__name__)


def try_plot_run(folder: Path) -> None:
    """Draw a finished run's plots; it has lost nothing if that fails, in whatever way, so a failure is only said."""
    try:
        from .plots import plot_run

        plot_run(folder)
    except Exception as error:
        logger.warning(
            "the plots of %s could not be drawn (%s). The run is whole; try again with: bbt-fast report %s --plots",
            folder, error, folder,
        )  # fmt: skip
        logger.debug("plotting failed", exc_info=True)
