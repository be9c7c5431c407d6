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
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .attention import KeysValues
from .packed_attention import KERNELS, AttendAlone
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
        return Row(self, named)


class Row:
    """Texts in a row, while a stage runs.

    Args:
        packing: how the layers run.
        tensors: those that the stage was given, by name.
    """

    def __init__(self, packing: Packing, tensors: Mapping[str, Tensor]) -> None:
        self.packing, self.tensors = packing, tensors
        self.named: dict[str, Any] = dict(tensors) | {
            name: None if packed is None else tensors[packed] for name, packed in packing.names.items()
        }
        """What the layers are given, by its recorded name."""

    def attend(
        self, module: nn.Module, qkv: tuple[Tensor, Tensor, Tensor], before: KeysValues | None, how: dict[str, Any]
    ) -> Tensor:
        """Attend within each text: queries, keys and values [P, heads, T, d] -> [P, T, heads, d].

        Args:
            module: the attention module.
            qkv: queries, keys and values.
            before: keys and values [P, heads, n, d] that all texts see before their own.
            how: what `transformers` hands to an attention function.
        """
        return KERNELS[self.packing.kernel].attend(self, module, qkv, before, how)

    @property
    def attend_alone(self) -> AttendAlone | None:
        """How one position of each text attends, if the kernel can; a graph has it the other way.

        It takes queries [P * N, heads, 1, d], keys and values [P, heads, T, d] and the scores' scale, and returns what
        the queries see, like them.
        """
        attend = KERNELS[self.packing.kernel].attend_alone
        if attend is None or self.packing.causal or torch.compiler.is_exporting():
            return None
        return partial(attend, self)

    def at(self, position: Tensor, states: Tensor) -> Tensor:
        """Return the states at one position ([P * N]) of each text: [P, T, H] -> [P * N, 1, H]."""
        starts = self.tensors[TEXT_INDEX][:, 0]
        return states.index_select(1, starts + position[: len(starts)]).reshape(-1, 1, states.shape[2])

    def positions(self) -> Tensor:
        """Return the position of each token in its text, [1, T]."""
        index = self.tensors[TOKEN_INDEX]
        return (index % torch.full_like(index, self.tensors[TEXT_INDEX].shape[1]))[None]  # ONNX takes no number there

    def unpack(self, states: Tensor) -> Tensor:
        """Lay out texts with padding, each one a batch row: [P, T, H] -> [P * N, S, H]."""
        index = self.tensors[TEXT_INDEX]
        padded = states.index_select(1, index.flatten())
        return padded.reshape(states.shape[0] * index.shape[0], index.shape[1], states.shape[2])

    def repeat(self, shared: KeysValues) -> KeysValues:
        """Repeat keys and values that all texts share for each text: [P, heads, n, d] -> [P * N, heads, n, d]."""
        texts = self.tensors[TEXT_INDEX].shape[0]
        keys, values = (part[:, None].expand(-1, texts, -1, -1, -1).flatten(0, 1) for part in shared)
        return keys, values


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
