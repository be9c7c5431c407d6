"""bbt-fast: Black-Box Tuning as fast as the hardware allows.

result = bbt_fast.tune(task_name="sst2", model_name="roberta-large", engine="ort")
classifier = bbt_fast.load(result.output_dir)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .export.errors import BbtFastError as BbtFastError
    from .tuner.artifacts.result import Result as Result
    from .tuner.input.options import Options as Options
    from .tuner.run.seeds import SeedsResult as SeedsResult
    from .tuner.tune import tune as tune
    from .tuner.tune import tune_seeds as tune_seeds
    from .tuner.use.classifier import Classifier as Classifier
    from .tuner.use.classifier import Evaluation as Evaluation
    from .tuner.use.classifier import Prediction as Prediction
    from .tuner.use.classifier import load as load

_HOMES = {
    "BbtFastError": ".export.errors",
    "Classifier": ".tuner.use.classifier",
    "Evaluation": ".tuner.use.classifier",
    "Prediction": ".tuner.use.classifier",
    "load": ".tuner.use.classifier",
    "Options": ".tuner.input.options",
    "Result": ".tuner.artifacts.result",
    "SeedsResult": ".tuner.run.seeds",
    "tune": ".tuner.tune",
    "tune_seeds": ".tuner.tune",
}
"""Where the public names live; each is imported when it is first asked for, because PyTorch takes seconds."""

__all__ = [
    "BbtFastError", "Classifier", "Evaluation", "Options", "Prediction", "Result", "SeedsResult", "load", "tune",
    "tune_seeds",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public name.

    Raises:
        AttributeError: if there is none.
    """
    if name not in _HOMES:
        raise AttributeError(f"module 'bbt_fast' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    """Return the public names beside those that are loaded."""
    return sorted({*globals(), *__all__})
