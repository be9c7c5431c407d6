"""The shapes of TensorRT plans.

A population has plans for exactly its shapes: a search uses the same shapes thousands of times, and TensorRT optimizes
fixed shapes best. A single candidate (a test of a prompt, the activations below the tuned layer) has many shapes but
runs rarely: it has one plan per stage for a range of shapes.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..export.prompts import Join
from ..export.stages import Stage
from ..export.tensorrt import LENGTHS, Profile

EXAMPLES = 32
"""The maximum number of examples per call of the plan for one candidate."""
TYPICAL_LENGTH = 128
"""The text length that this plan is optimized for."""
LENGTH, LABELS = 512, 16
"""The maximum text length and number of label words of this plan; doubled as often as needed."""


def exact_profile(inputs: Mapping[str, Tensor]) -> Profile:
    """Return the profile of exactly these shapes."""
    return {name: (tuple(tensor.shape),) * 3 for name, tensor in inputs.items()}


def range_profile(stage: Stage, join: Join, inputs: Mapping[str, Tensor]) -> Profile:
    """Return the profile of one candidate, for up to EXAMPLES examples of any length.

    Args:
        stage: the stage.
        join: the stage's join; for "add", a text is at least as long as the prompt's positions.
        inputs: the stage's inputs by name; hidden is [1, N, S, H].
    """
    length = inputs["hidden"].shape[2]
    shortest = join.start + join.n_prompt_tokens if join.kind == "add" else 1
    longest = _doubled(max(LENGTH, 2 * shortest), length)
    texts = (shortest, min(max(TYPICAL_LENGTH, shortest), longest), longest)
    labels = inputs["label_rows"].shape[0] if "label_rows" in inputs else 1
    bounds: dict[str | None, tuple[int, int, int]] = {
        "text": texts,
        "sequence": (join.length(texts[0]), join.length(texts[1]), join.length(texts[2])),
        "examples": (1, EXAMPLES, EXAMPLES),
        "labels": (1, LABELS, _doubled(LABELS, labels)),
    }
    if "decoder_states" in inputs:
        target = inputs["decoder_states"].shape[1]
        bounds["target"] = (1, target, max(target, longest))
    axes = {"hidden": (None, "examples", "text", None), "prompt": (None, None, None), **stage.axes}
    axes[LENGTHS] = ("examples",)
    profile = {}
    for name, tensor in inputs.items():
        sizes = [bounds.get(what, (size, size, size)) for what, size in zip(axes[name], tensor.shape, strict=True)]
        least, best, most = (tuple(size[bound] for size in sizes) for bound in range(3))
        profile[name] = (least, best, most)
    return profile


def _doubled(size: int, needed: int) -> int:
    """Return the size, doubled until it reaches the needed size."""
    while size < needed:
        size *= 2
    return size
