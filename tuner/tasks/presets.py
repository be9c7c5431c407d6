"""Values of unset options: from the task, else from the algorithm, else the general defaults."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..input.options import Options
from .task import Preset

DEMO = "demo"
"""The name of the packaged task and of the packaged model."""
ALGORITHM_DEFAULTS: dict[str, dict[str, Any]] = {
    "bbt": {"sigma": 1.0, "alpha": 1.0},  # Sun et al. 2022, Sec. 4.1
    "bbtv2": {"sigma": 0.2, "alpha": 0.2},  # Sun et al. 2022b
}
DEFAULTS: dict[str, Any] = {"budget": 8000, "loss_type": "ce", "model_name": "roberta-large"}
PATHS = ("model_name", "data_dir", "init_from", "projection_from", "onnx_model_path")
"""Options that may name files or folders; stored as absolute paths, so that a run can be resumed from anywhere."""


def resolve(options: Options, preset: Preset) -> Options:
    """Set the unset options.

    Args:
        options: the user's, which override everything.
        preset: the task's.

    Raises:
        UsageError: if the values contradict each other.
    """
    model = {"model_name": DEMO} if options.task_name == DEMO else {}
    own = {name: value for name, value in asdict(preset).items() if value is not None}
    filled = DEFAULTS | ALGORITHM_DEFAULTS[options.algorithm] | model | own
    filled = {name: value for name, value in filled.items() if getattr(options, name) is None}
    return absolute(options.changed(**filled))


def absolute(options: Options) -> Options:
    """Return the options with absolute paths, as a run's folder holds them."""
    paths: dict[str, Any] = {}
    for name in PATHS:
        value = getattr(options, name)
        if isinstance(value, tuple):
            paths[name] = tuple(map(_absolute, value))
        elif value not in (None, DEMO):
            paths[name] = _absolute(value)
    if options.task_name.endswith((".yaml", ".yml")):
        paths["task_name"] = str(Path(options.task_name).resolve())
    return options.changed(**paths)


def _absolute(name: str) -> str:
    """Return an existing path as an absolute one, and any other name unchanged."""
    return str(Path(name).resolve()) if Path(name).exists() else name
