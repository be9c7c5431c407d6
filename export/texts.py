"""The layout of packed texts: index tensors for ``packing.py``.

The texts do not change during a run, so the layout is computed once.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

Axes = tuple[str | None, ...]
"""What each axis of a tensor counts: "examples", "sequence", "target", "labels", for packed texts "tokens", "texts",
"bounds" and "keys", or None for a fixed size."""

TEXT_INDEX = "text_index"
"""[N, S] int64: the row index of each padded position; padding refers to the text's last token."""
TOKEN_INDEX = "token_index"
"""[T] int64: the padded position, 0 to N * S - 1, of each token in the row."""
TEXT_LENGTHS = "text_lengths"
"""[N] int64: the tokens of each text."""
PROMPT_INDEX = "prompt_index"
"""[T] int64: the prompt token that is added to each token of the row; n for none."""
CAT_INDEX = "cat_index"
"""[T] int64: for each token of the row its index in the concatenation of n prompt tokens and the texts' own tokens."""
BOUNDS = "bounds"
"""[P * N + 1] int32: the offset of each text of the population, and the total number of tokens."""
TOKEN_OFFSET = "token_offset"
"""[P * N, S] int32: the padded positions of all tokens in order, then those of the padding."""
KEY_INDEX = "key_index"
"""[N * n + T] int64: the keys that each text sees, text by text, as an index into n shared and T own keys."""
KEY_BOUNDS = "key_bounds"
"""[P * N + 1] int32: the offset of each text's keys, the shared ones included."""
EACH = "each"
"""[P * N + 1] int32: 0, 1, 2, ...: the bounds of one query per text."""

AXES: dict[str, Axes] = {
    TEXT_INDEX: ("examples", "sequence"),
    TOKEN_INDEX: ("tokens",),
    TEXT_LENGTHS: ("examples",),
    BOUNDS: ("bounds",),
    TOKEN_OFFSET: ("texts", "sequence"),
    KEY_INDEX: ("keys",),
    KEY_BOUNDS: ("bounds",),
    EACH: ("bounds",),
}
"""The axes of these tensors."""


@dataclass(frozen=True, eq=False)
class Texts:
    """The layout of N packed texts.

    Args:
        lengths: [N] int64, tokens per text.
        longest: S, the length of the padded texts.
        shared: the number of keys that all texts see before their own.
        device: the device of the index tensors.
    """

    lengths: Tensor
    longest: int
    shared: int = 0
    device: torch.device | str = "cpu"
    _of: dict[int, dict[str, Tensor]] = field(default_factory=dict)

    @property
    def real(self) -> Tensor:
        """[N, S] bool: which padded positions hold a token."""
        return torch.arange(self.longest) < self.lengths[:, None]

    @property
    def positions(self) -> Tensor:
        """[T] int64: the position of each token in its text."""
        return self.real.nonzero()[:, 1]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The index tensors that do not depend on the population size."""
        starts = self.lengths.cumsum(0) - self.lengths
        steps = torch.arange(self.longest)
        keys = [
            torch.cat([torch.arange(self.shared), self.shared + torch.arange(start, start + length)])
            for start, length in zip(starts.tolist(), self.lengths.tolist(), strict=True)
        ]
        return {
            TEXT_INDEX: starts[:, None] + torch.minimum(steps, self.lengths[:, None] - 1),
            TOKEN_INDEX: self.real.flatten().nonzero()[:, 0],
            TEXT_LENGTHS: self.lengths,
            KEY_INDEX: torch.cat(keys),
        }

    def of(self, population: int) -> dict[str, Tensor]:
        """Return the index tensors for a population size; they are cached per size."""
        if population not in self._of:
            lengths = self.lengths.repeat(population)
            real = self.real.repeat(population, 1).flatten()
            offsets = torch.cat([real.nonzero()[:, 0], (~real).nonzero()[:, 0]])
            tensors = {
                BOUNDS: _bounds(lengths),
                KEY_BOUNDS: _bounds(lengths + self.shared),
                EACH: torch.arange(len(lengths) + 1, dtype=torch.int32),
                TOKEN_OFFSET: offsets.to(torch.int32).view(-1, self.longest),
            }
            self._of[population] = {name: tensor.to(self.device) for name, tensor in tensors.items()}
        return self._of[population]

    def pack(self, padded: Tensor) -> Tensor:
        """Pack padded texts [N, S, ...] into a row [T, ...]."""
        return padded[self.real.to(padded.device)]

    def to(self, device: torch.device) -> Texts:
        """Return the same layout for another device."""
        return replace(self, device=device, _of={})


def prompt_index(positions: Tensor, start: int, n: int) -> Tensor:
    """Return PROMPT_INDEX for tokens at these positions of their texts ([T]) and n prompt tokens from ``start``."""
    inside = (positions >= start) & (positions < start + n)
    return torch.where(inside, positions - start, n)


def cat_index(positions: Tensor, n: int) -> Tensor:
    """Return CAT_INDEX for tokens at these positions of their texts ([T]) and n prompt tokens before each text."""
    own = positions >= n
    return torch.where(own, own.cumsum(0) - 1 + n, positions)


def _bounds(lengths: Tensor) -> Tensor:
    return pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
