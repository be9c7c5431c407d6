"""Where accuracy.py keeps its runs, and fidelity.py finds their searches."""

from __future__ import annotations

from pathlib import Path

from bbt_fast.export.errors import UsageError
from bbt_fast.tuner.run.seeds import child_name


def runs_of(runs: Path, model: str, task: str) -> Path:
    """Return the folder of the runs on one task with one model."""
    return runs / f"{model}-{task}"


def run_folder(folder: Path, algorithm: str, engine: str, budget: str, seed: int) -> Path:
    """Return the folder of one run among them."""
    return folder / f"{algorithm}-{engine}-{budget}" / child_name(seed)


def search_in_fp32(folder: Path, algorithm: str, seed: int) -> Path:
    """Return the folder of a run in fp32 among them, whatever its engine and budget.

    Raises:
        UsageError: if there is none.
    """
    pattern = run_folder(Path(), algorithm, "*-fp32", "*", seed)
    found = sorted(folder.glob(str(pattern)))
    if not found:
        raise UsageError(f"there is no run {folder / pattern}: make it with accuracy.py and the same --runs.")
    return found[0]
