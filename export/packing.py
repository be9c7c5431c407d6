"""Packed texts: the tokens of all texts are concatenated into one row, without padding and masks.

A packed stage takes hidden states [P, 1, T, H], T tokens of N texts (``texts.py``); a padded one takes [P, N, S, H].
Token-wise operations run unchanged. Attention runs on a kernel of ``packed_attention.py`` that keeps texts apart. The
last layer computes answer positions only, which is cheap. Some kernels support one query per text; for the others the
last layer unpacks the texts (``Row.unpack``) and runs as in a padded stage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .packed_attention import KERNELS
from .row import Row
from .texts import AXES, TEXT_INDEX, TOKEN_INDEX, Axes, Texts


@dataclass(frozen=True, eq=False)
class Packing:
    """How a stage's layers run on packed texts.

    Args:
        kernel: a row of KERNELS.
        names: for each recorded tensor, the packed tensor that replaces it; None for a mask that is no longer needed.
        recorded: the axes of these packed tensors.
        causal: whether attention is causal.
    """

    kernel: str
    names: Mapping[str, str | None]
    recorded: Mapping[str, Axes]
    causal: bool

    def axes(self, *, answers: bool, entrance: bool) -> dict[str, Axes]:
        """Return the axes of the tensors that a stage takes.

        Args:
            answers: whether the stage answers; its last layer may unpack the texts.
            entrance: whether the stage has an entrance, which needs the tokens' positions.
        """
        index = KERNELS[self.kernel].tensors + (TEXT_INDEX,) * answers + (TOKEN_INDEX, TEXT_INDEX) * entrance
        return {name: AXES[name] for name in index} | dict(self.recorded)

    def row(self, named: Mapping[str, Tensor]) -> Row:
        """Return the row with these tensors."""
        return Row(KERNELS[self.kernel], self.causal, named, self.names)


def pack_recorded(
    names: Sequence[str], tensors: Mapping[str, Tensor], axes: Mapping[str, Axes], texts: Texts
) -> tuple[dict[str, str | None], dict[str, Tensor]] | None:
    """Pack recorded tensors: return the names of their replacements by name, and the packed tensors by name.

    None if a tensor cannot be packed: a bias or mask over pairs of positions that hides more than padding, such as
    relative positions or a sliding window.
    """
    replaced: dict[str, str | None] = {}
    packed: dict[str, Tensor] = {}
    for name in names:
        tensor, counts = tensors[name], axes[name]
        if tensor.dtype is torch.bool and _is_padding(tensor, texts.real.to(tensor.device)):
            replaced[name] = None
        elif counts.count("sequence") == 1 and counts[1] == "sequence":
            replaced[name] = f"packed_{name}"
            every = tensor.expand(len(texts.lengths), *tensor.shape[1:])
            packed[f"packed_{name}"] = texts.pack(every)[None]
        elif "sequence" in counts or "examples" in counts:
            return None
    return replaced, packed


def _is_padding(mask: Tensor, real: Tensor) -> bool:
    """Return whether a mask [N, ..., S] hides padding only."""
    seen = real.view(len(real), *[1] * (mask.ndim - 2), -1)
    return mask.shape[0] == len(real) and mask.shape[-1] == real.shape[1] and bool((mask == seen).all())
