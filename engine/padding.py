"""Replace masks that hide only padding by the length of each text."""

from __future__ import annotations

import torch
from torch import Tensor

from ..export.model import Encoded


def padding_lengths(encoded: Encoded) -> Tensor | None:
    """Return the length of each text, [N] int32, if the masks hide nothing but padding.

    None if a mask hides more (causal, sliding window), if it is an added bias (T5), if there is no mask, or if there is
    a decoder, whose own tokens have other lengths.
    """
    axes = {name: axes for stage in encoded.stages for name, axes in stage.axes.items()}
    if any("target" in counts for counts in axes.values()):
        return None
    pairwise = [name for name, counts in axes.items() if counts.count("sequence") == 2]
    if not pairwise or not all(encoded.tensors[name].dtype is torch.bool for name in pairwise):
        return None
    lengths = encoded.tensors[pairwise[0]][:, 0, 0].sum(dim=1, dtype=torch.int32)
    for name in pairwise:
        mask = encoded.tensors[name]
        seen = torch.arange(mask.shape[-1], device=mask.device) < lengths[:, None, None, None]
        if mask.shape[0] != encoded.hidden.shape[1] or not bool((mask == seen).all()):
            return None
    return lengths
