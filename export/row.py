"""Packed texts while a stage runs on them; see ``packing.py``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .attention import KeysValues
from .texts import TEXT_INDEX, TOKEN_INDEX

QueriesKeysValues = tuple[Tensor, Tensor, Tensor]
AttendAlone = Callable[[Tensor, KeysValues, float | None], Tensor]


@dataclass(frozen=True)
class Kernel:
    """An attention kernel for packed texts."""

    attend: Callable[[Row, nn.Module, QueriesKeysValues, KeysValues | None, dict[str, Any]], Tensor]
    tensors: tuple[str, ...]
    """The names of its inputs."""
    attend_alone: Callable[[Row, Tensor, KeysValues, float | None], Tensor] | None = None
    """Attention for one query per text, if the kernel supports it; see ``Row.attend_alone``."""
    causal: bool = True
    """Whether the kernel supports causal attention."""


class Row:
    """Packed texts during one stage.

    Args:
        kernel: the attention kernel.
        causal: whether attention is causal.
        tensors: the stage's inputs, by name.
        names: for each recorded tensor, the packed tensor that replaces it; None for a mask that is no longer needed.
    """

    def __init__(
        self, kernel: Kernel, causal: bool, tensors: Mapping[str, Tensor], names: Mapping[str, str | None]
    ) -> None:
        self._kernel, self.causal, self.tensors = kernel, causal, tensors
        self.named: dict[str, Any] = dict(tensors) | {
            name: None if packed is None else tensors[packed] for name, packed in names.items()
        }
        """The layers' inputs, by recorded name."""

    def attend(
        self, module: nn.Module, qkv: QueriesKeysValues, before: KeysValues | None, how: dict[str, Any]
    ) -> Tensor:
        """Attend within each text: queries, keys and values [P, heads, T, d] -> [P, T, heads, d].

        Args:
            module: the attention module.
            qkv: queries, keys and values.
            before: keys and values [P, heads, n, d] of a prefix that all texts see.
            how: the keyword arguments that `transformers` passes to an attention function.
        """
        return self._kernel.attend(self, module, qkv, before, how)

    @property
    def attend_alone(self) -> AttendAlone | None:
        """Attention for one query per text, if the kernel supports it; exported graphs unpack the texts instead.

        It maps queries [P * N, heads, 1, d], keys and values [P, heads, T, d] and a scale to outputs like the queries.
        """
        attend = self._kernel.attend_alone
        if attend is None or self.causal or torch.compiler.is_exporting():
            return None
        return partial(attend, self)

    def at(self, position: Tensor, states: Tensor) -> Tensor:
        """Return the states at one position ([P * N]) of each text: [P, T, H] -> [P * N, 1, H]."""
        starts = self.tensors[TEXT_INDEX][:, 0]
        return states.index_select(1, starts + position[: len(starts)]).reshape(-1, 1, states.shape[2])

    def positions(self) -> Tensor:
        """Return the position of each token in its text, [1, T]."""
        index = self.tensors[TOKEN_INDEX]
        return (index % torch.full_like(index, self.tensors[TEXT_INDEX].shape[1]))[None]  # ONNX requires a tensor there

    def unpack(self, states: Tensor) -> Tensor:
        """Unpack texts into padded batch rows: [P, T, H] -> [P * N, S, H]."""
        index = self.tensors[TEXT_INDEX]
        padded = states.index_select(1, index.flatten())
        return padded.reshape(states.shape[0] * index.shape[0], index.shape[1], states.shape[2])

    def repeat(self, shared: KeysValues) -> KeysValues:
        """Repeat shared keys and values for each text: [P, heads, n, d] -> [P * N, heads, n, d]."""
        texts = self.tensors[TEXT_INDEX].shape[0]
        keys, values = (part[:, None].expand(-1, texts, -1, -1, -1).flatten(0, 1) for part in shared)
        return keys, values
