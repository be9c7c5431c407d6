"""The text lengths of three tasks: their quantiles, and lengths drawn from them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

QUANTILES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
LENGTHS: dict[str, tuple[int, ...]] = {
    "sst2": (8, 9, 9, 10, 12, 13, 15, 17, 21, 26, 31, 37, 58),
    "ag_news": (26, 37, 41, 46, 50, 53, 56, 59, 63, 70, 88, 120, 302),
    "dbpedia_14": (8, 30, 37, 48, 57, 67, 76, 84, 91, 98, 106, 113, 233),
}
"""Quantiles of the tokens per example, with template and special tokens, without the prompt.

They were counted on the few-shot training and development sets of 20 seeds.
"""

CLASSES = {"sst2": 2, "ag_news": 4, "dbpedia_14": 14}


def draw_lengths(task: str, n_examples: int, seed: int) -> Tensor:
    """Draw the lengths of N texts without the prompt, [N] int64."""
    points = np.random.default_rng(seed).random(n_examples)
    return torch.from_numpy(np.interp(points, QUANTILES, LENGTHS[task]).round().astype(np.int64))
