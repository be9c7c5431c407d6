"""Texts in a row: the tokens of all texts one behind the other, so that no padding is computed and no mask is read.

The texts never change in a run, so where each begins is known once. A packed stage takes hidden states [P, 1, T, H],
T tokens of N texts, where another takes [P, N, S, H]. What works token by token runs as it is; attention goes by the
bounds of the texts, on one of the kernels below. At the answer positions alone the last layer is a small matter: some
kernels attend there from one position of each text, for the others the texts are laid out with padding again
(``Row.unpack``), and it runs as in any other stage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import varlen
from torch.nn.functional import scaled_dot_product_attention

from .attention import KeysValues, sdpa

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


def _bounds(lengths: Tensor) -> Tensor:
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)


Attend = Callable[[Row, nn.Module, tuple[Tensor, Tensor, Tensor], KeysValues | None, dict[str, Any]], Tensor]
AttendAlone = Callable[[Tensor, KeysValues, float | None], Tensor]


def _padded(
    row: Row, module: nn.Module, qkv: tuple[Tensor, Tensor, Tensor], before: KeysValues | None, how: dict[str, Any]
) -> Tensor:
    """Lay the texts out with padding, run SDPA and pack what comes out: the reference of the other kernels."""
    index = row.tensors[TEXT_INDEX]
    texts, longest = index.shape

    def unpacked(part: Tensor) -> Tensor:
        """[P, heads, T, d] -> [P * N, heads, S, d]."""
        wide = part.transpose(1, 2).index_select(1, index.flatten())
        return wide.reshape(population * texts, longest, *wide.shape[2:]).transpose(1, 2)

    population = qkv[0].shape[0]
    query, key, value = map(unpacked, qkv)
    mask = None
    if not row.packing.causal:  # padding stands behind a text, where no real token of a causal model looks
        real = torch.arange(longest, device=index.device) < row.tensors[TEXT_LENGTHS][:, None]
        mask = real[None].expand(population, -1, -1).reshape(population * texts, 1, 1, longest)
        mask = mask.expand(-1, -1, longest, -1)
    seen = sdpa(module, query, key, value, mask, None if before is None else row.repeat(before), how)
    flat = seen.reshape(population, texts * longest, *seen.shape[2:])
    return flat.index_select(1, row.tensors[TOKEN_INDEX])


def _varlen(
    row: Row, module: nn.Module, qkv: tuple[Tensor, Tensor, Tensor], before: KeysValues | None, how: dict[str, Any]
) -> Tensor:
    """Run PyTorch's flash kernel by the texts' bounds; CUDA, fp16 and bf16 only."""
    query, key, value = qkv
    bounds = key_bounds = row.tensors[BOUNDS]
    longest = longest_keys = row.tensors[TEXT_INDEX].shape[1]
    if before is not None:
        index, key_bounds = row.tensors[KEY_INDEX], row.tensors[KEY_BOUNDS]
        longest_keys += before[0].shape[2]
        key, value = (torch.cat(both, dim=2).index_select(2, index) for both in zip(before, (key, value), strict=True))
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    query_row, key_row, value_row = (part.transpose(1, 2).flatten(0, 1) for part in (query, key, value))
    seen = varlen.varlen_attn(
        query_row,
        key_row,
        value_row,
        bounds,
        key_bounds,
        longest,
        longest_keys,
        scale=how.get("scaling"),
        window_size=(-1, 0) if row.packing.causal else (-1, -1),
    )
    assert isinstance(seen, Tensor)
    return seen.view(query.shape[0], query.shape[2], *seen.shape[1:])


def _varlen_alone(row: Row, query: Tensor, keys_values: KeysValues, scale: float | None) -> Tensor:
    """Run PyTorch's flash kernel for one query of each text."""
    key, value = (part.transpose(1, 2).flatten(0, 1) for part in keys_values)
    longest = row.tensors[TEXT_INDEX].shape[1]
    seen = varlen.varlen_attn(
        query[:, :, 0],
        key,
        value,
        row.tensors[EACH],
        row.tensors[BOUNDS],
        1,
        longest,
        scale=scale,
        window_size=(-1, -1),
    )
    assert isinstance(seen, Tensor)
    return seen[:, :, None]


def _padded_alone(row: Row, query: Tensor, keys_values: KeysValues, scale: float | None) -> Tensor:
    """Lay keys and values out with padding and run SDPA: the reference of the other kernels."""
    index = row.tensors[TEXT_INDEX]

    def unpacked(part: Tensor) -> Tensor:
        """[P, heads, T, d] -> [P * N, heads, S, d]."""
        wide = row.unpack(part.transpose(1, 2).flatten(2))
        return wide.reshape(*wide.shape[:2], part.shape[1], part.shape[3]).transpose(1, 2)

    key, value = map(unpacked, keys_values)
    real = torch.arange(index.shape[1], device=index.device) < row.tensors[TEXT_LENGTHS][:, None]
    mask = real[None].expand(len(keys_values[0]), -1, -1).reshape(-1, 1, 1, index.shape[1])
    return scaled_dot_product_attention(query, key, value, mask, scale=scale)


def _contrib(
    row: Row, module: nn.Module, qkv: tuple[Tensor, Tensor, Tensor], before: KeysValues | None, how: dict[str, Any]
) -> Tensor:
    """Stand for ONNX Runtime's packed operator in a graph; PyTorch itself runs the reference."""
    if not torch.compiler.is_exporting():
        return _padded(row, module, qkv, before, how)
    population, heads, tokens, size = qkv[0].shape
    flat = [part.transpose(1, 2).reshape(population * tokens, heads * size) for part in qkv]
    scale = how.get("scaling")
    seen = torch.onnx.ops.symbolic(
        "com.microsoft::PackedMultiHeadAttention",
        [*flat, None, row.tensors[TOKEN_OFFSET], row.tensors[BOUNDS]],
        {"num_heads": heads, "scale": size**-0.5 if scale is None else float(scale)},
        dtype=flat[0].dtype,
        shape=flat[0].shape,
        version=1,
    )
    return seen.reshape(population, tokens, heads, size)


@dataclass(frozen=True)
class Kernel:
    """A way to attend within the texts of a row."""

    attend: Attend
    tensors: tuple[str, ...]
    """What it takes, by name."""
    attend_alone: Callable[[Row, Tensor, KeysValues, float | None], Tensor] | None = None
    """How one position of each text attends, if it can; see ``Row.attend_alone``."""
    causal: bool = True
    """Whether it can be causal."""


KERNELS: dict[str, Kernel] = {
    "padded": Kernel(_padded, (TEXT_INDEX, TOKEN_INDEX, TEXT_LENGTHS), _padded_alone),
    "varlen": Kernel(_varlen, (TEXT_INDEX, BOUNDS, KEY_INDEX, KEY_BOUNDS, EACH), _varlen_alone),
    "contrib": Kernel(_contrib, (TEXT_INDEX, TOKEN_INDEX, TEXT_LENGTHS, TOKEN_OFFSET, BOUNDS), causal=False),
}
"""By name: PyTorch's operators anywhere, PyTorch's on CUDA, and ONNX Runtime's on CUDA."""
