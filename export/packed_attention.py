"""The attention kernels for packed texts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import varlen
from torch.nn.functional import scaled_dot_product_attention

from .attention import KeysValues, sdpa
from .row import Kernel, QueriesKeysValues, Row
from .short_attention import row_attention
from .texts import BOUNDS, EACH, KEY_BOUNDS, KEY_INDEX, TEXT_INDEX, TEXT_LENGTHS, TOKEN_INDEX, TOKEN_OFFSET


def _padded(
    row: Row, module: nn.Module, qkv: QueriesKeysValues, before: KeysValues | None, how: dict[str, Any]
) -> Tensor:
    """Unpack the texts, run SDPA and pack the result: the reference for the other kernels."""
    texts, longest = row.tensors[TEXT_INDEX].shape
    population = qkv[0].shape[0]
    query, key, value = (_unpacked(row, part) for part in qkv)
    mask = None
    if not row.causal:  # padding follows the text, and causal attention does not look ahead
        mask = _padding_mask(row, population).expand(-1, -1, longest, -1)
    seen = sdpa(module, query, key, value, mask, None if before is None else row.repeat(before), how)
    flat = seen.reshape(population, texts * longest, *seen.shape[2:])
    return flat.index_select(1, row.tensors[TOKEN_INDEX])


def _varlen(
    row: Row, module: nn.Module, qkv: QueriesKeysValues, before: KeysValues | None, how: dict[str, Any]
) -> Tensor:
    """Run flash attention on packed texts; CUDA, fp16 and bf16 only."""
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
    scale: float = query.shape[3] ** -0.5 if how.get("scaling") is None else how["scaling"]
    seen: Any
    if before is None and not row.causal:
        seen = row_attention(query_row, key_row, value_row, bounds, longest, scale)
    else:
        seen = varlen.varlen_attn(
            query_row,
            key_row,
            value_row,
            bounds,
            key_bounds,
            longest,
            longest_keys,
            scale=scale,
            window_size=(-1, 0) if row.causal else (-1, -1),
        )
    joined: Tensor = seen
    return joined.view(query.shape[0], query.shape[2], *joined.shape[1:])


def _varlen_alone(row: Row, query: Tensor, keys_values: KeysValues, scale: float | None) -> Tensor:
    """Run PyTorch's flash kernel for one query per text."""
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
    """Unpack keys and values and run SDPA for one query per text: the reference for the other kernels."""
    key, value = (_unpacked(row, part) for part in keys_values)
    return scaled_dot_product_attention(query, key, value, _padding_mask(row, len(keys_values[0])), scale=scale)


def _unpacked(row: Row, part: Tensor) -> Tensor:
    """Unpack queries, keys or values: [P, heads, T, d] -> [P * N, heads, S, d]."""
    texts, longest = row.tensors[TEXT_INDEX].shape
    wide = part.transpose(1, 2).index_select(1, row.tensors[TEXT_INDEX].flatten())
    return wide.reshape(part.shape[0] * texts, longest, *wide.shape[2:]).transpose(1, 2)


def _padding_mask(row: Row, population: int) -> Tensor:
    """Return the mask of real tokens, [P * N, 1, 1, S]."""
    texts, longest = row.tensors[TEXT_INDEX].shape
    lengths = row.tensors[TEXT_LENGTHS]
    real = torch.arange(longest, device=lengths.device) < lengths[:, None]
    return real[None].expand(population, -1, -1).reshape(population * texts, 1, 1, longest)


def _contrib(
    row: Row, module: nn.Module, qkv: QueriesKeysValues, before: KeysValues | None, how: dict[str, Any]
) -> Tensor:
    """Emit ONNX Runtime's packed operator during an export; in PyTorch run the reference."""
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


KERNELS: dict[str, Kernel] = {
    "padded": Kernel(_padded, (TEXT_INDEX, TOKEN_INDEX, TEXT_LENGTHS), _padded_alone),
    "varlen": Kernel(_varlen, (TEXT_INDEX, BOUNDS, KEY_INDEX, KEY_BOUNDS, EACH), _varlen_alone),
    "contrib": Kernel(_contrib, (TEXT_INDEX, TOKEN_INDEX, TEXT_LENGTHS, TOKEN_OFFSET, BOUNDS), causal=False),
}
"""By name: PyTorch on any device, PyTorch on CUDA, and ONNX Runtime on CUDA."""
