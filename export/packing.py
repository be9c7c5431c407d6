"""Texts in a row: the tokens of all texts one behind the other, so that no padding is computed and no mask is read.

A packed stage takes hidden states [P, 1, T, H], T tokens of N texts (``texts.py``), where another takes [P, N, S, H].
What works token by token runs as it is; attention goes by the bounds of the texts, on one of the kernels of
``packed_attention.py``. At the answer positions alone the last layer is a small matter: some kernels attend there from
one position of each text, for the others the texts are laid out with padding again (``Row.unpack``), and it runs as in
any other stage.
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
    """How a stage's layers run on texts in a row.

    Args:
        kernel: a row of KERNELS.
        names: the packed tensor that takes the place of each recorded one; None for a mask, which is needed no more.
        recorded: what the axes of these packed tensors count.
        causal: whether a position sees only those before it.
    """

    kernel: str
    names: Mapping[str, str | None]
    recorded: Mapping[str, Axes]
    causal: bool

    def axes(self, *, answers: bool, entrance: bool) -> dict[str, Axes]:
        """Return the tensors that a stage takes, and what their axes count.

        Args:
            answers: whether the stage answers, so that its last layer is unpacked.
            entrance: whether something stands before its first layer that needs the tokens' positions.
        """
        index = KERNELS[self.kernel].tensors + (TEXT_INDEX,) * answers + (TOKEN_INDEX, TEXT_INDEX) * entrance
        return {name: AXES[name] for name in index} | dict(self.recorded)

    def row(self, named: Mapping[str, Tensor]) -> Row:
        """Return the row that these tensors stand for."""
        return Row(KERNELS[self.kernel], self.causal, named, self.names)


def pack_recorded(
    names: Sequence[str], tensors: Mapping[str, Tensor], axes: Mapping[str, Axes], texts: Texts
) -> tuple[dict[str, str | None], dict[str, Tensor]] | None:
    """Return what takes the place of recorded tensors in a row: names by name, and those tensors by name.

    None if the layers take something that cannot be packed: a bias or a mask for pairs of positions that says more than
    where a text ends, such as relative positions or a sliding window.
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
    """Tell whether a mask [N, ..., S] only hides padding."""
    seen = real.view(len(real), *[1] * (mask.ndim - 2), -1)
    return mask.shape[0] == len(real) and mask.shape[-1] == real.shape[1] and bool((mask == seen).all())
