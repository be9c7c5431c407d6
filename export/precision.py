"""The precisions of engines, and the parity gate's thresholds for each."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .errors import UsageError


@dataclass(frozen=True)
class Precision:
    """A number format and its thresholds."""

    name: str
    dtype: torch.dtype
    min_spearman: float
    """Least rank correlation with fp32 of a random population's losses per text."""
    max_loss_error: float
    """Largest mean error of a text's loss, in units of its standard deviation over the population."""
    max_rounding: float = 4.0
    """Largest mean error of a loss on wider prompts, in units of PyTorch's error in ``dtype`` (see ``judge``)."""


PRECISIONS: dict[str, Precision] = {
    p.name: p
    for p in (
        Precision("fp32", torch.float32, 0.99, 0.01),
        Precision("bf16", torch.bfloat16, 0.70, 2.0),
        Precision("fp16", torch.float16, 0.95, 0.25),
        Precision("fp16-fast", torch.float16, 0.95, 0.25, 8.0),
        Precision("fp8", torch.float16, 0.70, 2.0, 200.0),
    )
}


def precision_of(name: str) -> Precision:
    """Return a row of PRECISIONS.

    Raises:
        UsageError: if there is no such row.
    """
    if name not in PRECISIONS:
        raise UsageError(f"precision is {name!r}, but it must be auto or one of {', '.join(PRECISIONS)}.")
    return PRECISIONS[name]
