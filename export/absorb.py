"""Attention for one query without keys and values: the projection matrices are absorbed into the query and the output.

Let a layer's keys and values be linear maps of its input, K = X Wk + bk and V = X Wv + bv. A query q then has the
scores q K' = (q Wk') X' + q bk'. The last term is the same for all positions, so it does not change the softmax. The
output is softmax(.) V = (softmax(.) X) Wv + bv, since the weights sum to 1. The hidden states X therefore replace K and
V. A position costs 4 H multiply-adds per head; projecting its key and value would cost 2 H^2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .attention import capture


@dataclass(frozen=True, eq=False)
class Absorbed:
    """A layer's key and value projections, both applied to the layer's input."""

    key: nn.Linear
    value: nn.Linear

    def __call__(self, query: Tensor, states: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
        """Attend to all positions with one query per row.

        Args:
            query: [B, heads, 1, d].
            states: [B, S, H], the layer's input.
            mask: broadcasts to [B, heads, 1, S]; boolean (True is visible) or added to the scores. None for no mask.
            scale: factor of the scores; None for 1 / sqrt(d).

        Returns:
            [B, heads, 1, d].
        """
        heads, d = query.shape[1], query.shape[3]
        by_head = query[:, :, 0].transpose(0, 1) * (d**-0.5 if scale is None else scale)
        keyed = torch.matmul(by_head, self.key.weight.view(heads, d, -1)).transpose(0, 1)
        scores = torch.matmul(keyed.float(), states.float().transpose(1, 2))  # fused attention keeps scores in fp32
        if mask is not None:
            seen = mask.expand(-1, -1, 1, -1)[:, :, 0]
            least = torch.finfo(scores.dtype).min
            scores = scores.masked_fill(~seen, least) if mask.dtype is torch.bool else scores + seen
        weights = scores.softmax(dim=-1).to(states.dtype)
        seen_states = torch.matmul(weights, states).transpose(0, 1)
        values = torch.matmul(seen_states, self.value.weight.view(heads, -1, states.shape[2]).transpose(1, 2))
        if self.value.bias is not None:
            values = values + self.value.bias.view(heads, 1, -1)
        return values.transpose(0, 1)[:, :, None]


def absorbed(layer: nn.Module, states: Tensor, run: Callable[[], Tensor]) -> Absorbed | None:
    """Return a layer's key and value projections, or None if its keys or values are not linear maps of its input.

    The check compares memory addresses: after a rotation, a norm or a bias, the attention reads other memory than the
    projection wrote.

    Args:
        layer: the layer.
        states: [B, S, H], the layer's input.
        run: runs the layer on exactly these states.
    """
    written: dict[int, tuple[nn.Linear, Tensor]] = {}

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if inputs[0] is states:
            assert isinstance(module, nn.Linear)
            written[output.data_ptr()] = module, output

    hooks = [part.register_forward_hook(note) for part in layer.modules() if isinstance(part, nn.Linear)]
    try:
        with torch.no_grad():
            keys_values, _ = capture(run)
    finally:
        for hook in hooks:
            hook.remove()
    if keys_values is None:
        return None
    projections = []
    for tensor in keys_values:
        projection, output = written.get(tensor.data_ptr(), (None, None))
        if projection is None or output is None or output.numel() != tensor.numel():
            return None
        projections.append(projection)
    return Absorbed(*projections)
