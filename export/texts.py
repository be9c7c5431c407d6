"""Where the tokens of texts in a row stand: what ``packing.py`` runs layers by.

The texts never change in a run, so where each begins is known once.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

Axes = tuple[str | None, ...]
"""What each axis of a tensor counts: "examples", "sequence", "target", "labels", for texts in a row "tokens", "texts",
"bounds" and "keys", or None for a fixed size."""

TEXT_INDEX = "text_index"
"""[N, S] int64: where each position of a padded text stands in the row; padding stands where its text ends."""
TOKEN_INDEX = "token_index"
"""[T] int64: where each token of the row stands among the N * S positions of the padded texts."""
TEXT_LENGTHS = "text_lengths"
"""[N] int64: the tokens of each text."""
PROMPT_INDEX = "prompt_index"
"""[T] int64: which prompt token is added to each token of the row; n for none."""
CAT_INDEX = "cat_index"
"""[T] int64: which of n prompt tokens and the texts' own tokens stands where in the row, if they are concatenated."""
BOUNDS = "bounds"
"""[P * N + 1] int32: how many tokens stand before each text of the population, and all of them."""
TOKEN_OFFSET = "token_offset"
"""[P * N, S] int32: the padded positions of all tokens in order, then those of the padding."""
KEY_INDEX = "key_index"
"""[N * n + T] int64: which of n shared and T own keys each text sees, text by text."""
KEY_BOUNDS = "key_bounds"
"""[P * N + 1] int32: as BOUNDS, with the shared keys before each text."""
EACH = "each"
"""[P * N + 1] int32: 0, 1, 2, ...: the bounds of one query for each text."""

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
"""What the axes of these tensors count."""


@dataclass(frozen=True, eq=False)
class Texts:
    """How N texts stand in a row.

    Args:
        lengths: [N] int64, tokens per text.
        longest: S, the length that padded texts have.
        shared: how many keys all texts see before their own.
        device: where the layers take what says so.
    """

    lengths: Tensor
    longest: int
    shared: int = 0
    device: torch.device | str = "cpu"
    _of: dict[int, dict[str, Tensor]] = field(default_factory=dict)

    @property
    def real(self) -> Tensor:
        """[N, S]: which positions of the padded texts hold a token."""
        return torch.arange(self.longest) < self.lengths[:, None]

    @property
    def positions(self) -> Tensor:
        """[T] int64: the position of each token in its text."""
        return self.real.nonzero()[:, 1]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What the layers take, whatever the population is."""
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
        """Return what the layers take for so many candidates; each size is made once."""
        if population not in self._of:
            lengths = self.lengths.repeat(population)
            real = self.real.repeat(population, 1).flatten()
            offsets = torch.cat([real.nonzero()[:, 0], (~real).nonzero()[:, 0]])
            made = {
                BOUNDS: _bounds(lengths),
                KEY_BOUNDS: _bounds(lengths + self.shared),
                EACH: torch.arange(len(lengths) + 1, dtype=torch.int32),
                TOKEN_OFFSET: offsets.to(torch.int32).view(-1, self.longest),
            }
            self._of[population] = {name: tensor.to(self.device) for name, tensor in made.items()}
        return self._of[population]

    def pack(self, padded: Tensor) -> Tensor:
        """Put the tokens of padded texts [N, S, ...] into a row [T, ...]."""
        return padded[self.real.to(padded.device)]

    def to(self, device: torch.device) -> Texts:
        """Return the same for layers on a device."""
        return replace(self, device=device, _of={})


def prompt_index(positions: Tensor, start: int, n: int) -> Tensor:
    """Return PROMPT_INDEX for tokens at these positions of their texts ([T]) and n prompt tokens from ``start`` on."""
    inside = (positions >= start) & (positions < start + n)
    return torch.where(inside, positions - start, n)


def cat_index(positions: Tensor, n: int) -> Tensor:
    """Return CAT_INDEX for tokens at these positions of their texts ([T]), n prompt tokens before each text."""
    own = positions >= n
    return torch.where(own, own.cumsum(0) - 1 + n, positions)


def _bounds(lengths: Tensor) -> Tensor:
    return pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
