"""PyTorch layers with fewer kernels: one product where several read the same input, and sums fused with norms."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ..export.stages import Stage
from .faults import first_line

COMPILE_FROM = 4096
"""Tokens from which on a call runs compiled layers: fewer do not make up for the seconds that compiling takes."""

logger = logging.getLogger(__name__)


class Products(nn.Module):
    """Linear maps of one input as one matrix product."""

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.sizes = [linear.out_features for linear in linears]
        weights: list[Tensor] = [linear.weight for linear in linears]
        biases: list[Tensor | None] = [linear.bias for linear in linears]
        self.linear = nn.Linear(1, 1, bias=False)
        self.linear.in_features, self.linear.out_features = linears[0].in_features, sum(self.sizes)
        self.linear.weight = nn.Parameter(torch.cat(weights), requires_grad=False)
        if any(bias is not None for bias in biases):
            zeros = [weight.new_zeros(len(weight)) for weight in weights]
            filled = [zero if bias is None else bias for zero, bias in zip(zeros, biases, strict=True)]
            self.linear.bias = nn.Parameter(torch.cat(filled), requires_grad=False)
        self._read: Tensor | None = None
        self._parts: list[Tensor | None] = []

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # it keeps state; a product is a kernel of its own anyway
    def part(self, states: Tensor, number: int) -> Tensor:
        """Return one map's output; the first of the maps that is asked for computes all of them."""
        if states is not self._read:
            self._read, self._parts = states, list(self.linear(states).split(self.sizes, dim=-1))
        part = self._parts[number]
        assert part is not None
        self._parts[number] = None
        if not any(one is not None for one in self._parts):
            self._read = None
        return part


class Part(nn.Module):
    """One of several linear maps of one input."""

    def __init__(self, products: Products, number: int) -> None:
        super().__init__()
        self.products, self.number = products, number

    def forward(self, states: Tensor) -> Tensor:
        """Return this map's output, [..., out]."""
        out: Tensor = self.products.part(states, self.number)
        return out


def merge_products(stages: Sequence[Stage], run: Callable[[], Any]) -> None:
    """Put one product in the place of all linear maps that read the same input.

    Args:
        stages: those whose layers are changed.
        run: runs the stages once, from which is seen what reads what.
    """
    layers = [layer for stage in stages for layer in dict.fromkeys(stage.layers.stack)]
    readers: list[tuple[Tensor, list[nn.Linear]]] = []

    def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(module, nn.Linear)
        if not readers or readers[-1][0] is not inputs[0]:
            readers.append((inputs[0], []))
        readers[-1][1].append(module)

    linears = [part for layer in layers for part in layer.modules() if isinstance(part, nn.Linear)]
    hooks = [linear.register_forward_pre_hook(note) for linear in dict.fromkeys(linears)]
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    merged = {tuple(together) for _, together in readers if len(together) > 1}
    alone = {linear for _, together in readers if tuple(together) not in merged for linear in together}
    places: dict[nn.Linear, Part] = {}
    for together in merged:
        if not alone & set(together) and not places.keys() & set(together):
            products = Products(together)
            places |= {linear: Part(products, number) for number, linear in enumerate(together)}
    for layer in layers:
        for parent in list(layer.modules()):
            for name, child in parent.named_children():
                if isinstance(child, nn.Linear) and child in places:
                    setattr(parent, name, places[child])


def compile_layers(stages: Sequence[Stage]) -> None:
    """Compile the layers for calls of many tokens; what cannot be compiled runs as it is."""
    for stage in stages:
        whole = stage.layers.stack[:-1] if stage.answers and stage.decoder is None else stage.layers.stack
        for layer in dict.fromkeys(whole):
            vars(layer)["forward"] = _Compiled(layer.forward)


class _Compiled:
    """A layer's forward pass, compiled where that pays."""

    broken = False

    def __init__(self, forward: Callable[..., Any]) -> None:
        self._plain = forward

    def __call__(self, states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if _Compiled.broken or states.shape[0] * states.shape[1] < COMPILE_FROM:
            return self._plain(states, *args, **kwargs)
        try:
            return self._compiled(states, *args, **kwargs)
        except Exception as error:
            if "out of memory" in str(error):
                raise
            _Compiled.broken = True
            logger.warning("layers cannot be compiled here: going on without (%s)", first_line(error))
            return self._plain(states, *args, **kwargs)

    @cached_property
    def _compiled(self) -> Callable[..., Any]:
        compiled: Callable[..., Any] = torch.compile(self._plain, dynamic=False)
        return compiled
