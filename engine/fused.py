"""Fuse PyTorch layers into fewer kernels: merged products, products with GELU, and sums with norms."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from ..export.errors import first_line
from ..export.prompts import Join
from ..export.stages import Stage
from .gelu import GeluLinear
from .reference import ModuleRunner

COMPILE_FROM = 4096
"""The least number of tokens for which a call runs compiled layers; with fewer, compiling does not pay."""
LARGE = 4_000_000
"""The least number of weights of a layer that is compiled. With smaller layers a search is over before compiling pays:
for a MiniLM (2 million) on an H100, 2000 evaluations took 1 to 3 s, and compiling 12 s; BERT-base has 7 million."""

logger = logging.getLogger(__name__)


class Products(nn.Module):
    """Linear layers with the same input, merged into one matrix product."""

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
        self._parts: dict[int, Tensor] = {}

    def part(self, states: Tensor, number: int) -> Tensor:
        """Return one layer's output; the first call for an input computes all outputs."""
        if states is not self._read:
            self._read, self._parts = states, dict(enumerate(self.linear(states).split(self.sizes, dim=-1)))
        part = self._parts.pop(number)
        if not self._parts:
            self._read = None
        return part


class Part(nn.Module):
    """One of several merged linear layers."""

    def __init__(self, products: Products, number: int) -> None:
        super().__init__()
        self.products, self.number = products, number

    def forward(self, states: Tensor) -> Tensor:
        """Return this layer's output, [..., out]."""
        return self.products.part(states, self.number)


def merge_products(stages: Sequence[Stage], run: Callable[[], Any]) -> None:
    """Merge linear layers that read the same input into one product.

    Args:
        stages: the stages; their layers are modified.
        run: runs the stages once, to observe the inputs of linear layers.
    """
    readers: list[tuple[Tensor, list[nn.Linear]]] = []

    def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(module, nn.Linear)
        if not readers or readers[-1][0] is not inputs[0]:
            readers.append((inputs[0], []))
        readers[-1][1].append(module)

    modules = _modules(stages)
    _watch(run, [module.register_forward_pre_hook(note) for module in modules if isinstance(module, nn.Linear)])
    merged = {tuple(together) for _, together in readers if len(together) > 1}
    alone = {linear for _, together in readers if tuple(together) not in merged for linear in together}
    places: dict[nn.Module, nn.Module] = {}
    for together in merged:
        if not alone & set(together) and not places.keys() & set(together):
            products = Products(together)
            places |= {linear: Part(products, number) for number, linear in enumerate(together)}
    _replace(modules, places)


def merge_gelus(stages: Sequence[Stage], run: Callable[[], Any]) -> None:
    """Merge a linear layer and the exact GELU that reads its output into one operator.

    Args:
        stages: as for ``merge_products``.
        run: as for ``merge_products``.
    """
    written: list[tuple[nn.Linear, Tensor]] = []
    sources: dict[nn.Module, set[nn.Linear | None]] = {}

    def wrote(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        del inputs
        assert isinstance(module, nn.Linear)
        written[:] = [(module, output)]

    def reads(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        source = next((linear for linear, output in written if output is inputs[0]), None)
        sources.setdefault(module, set()).add(source)

    modules = _modules(stages)
    gelus = [module for module in modules if _is_gelu(module)]
    linears = [module for module in modules if isinstance(module, nn.Linear)]
    hooks = [linear.register_forward_hook(wrote) for linear in linears]
    _watch(run, [*hooks, *(module.register_forward_pre_hook(reads) for module in gelus)])
    whole = {module: found for module, found in sources.items() if None not in found}
    places: dict[nn.Module, nn.Module] = dict.fromkeys(whole, nn.Identity())
    places |= {linear: GeluLinear(linear) for linear in chain(*whole.values()) if linear is not None}
    _replace(modules, places)


def _is_gelu(module: nn.Module) -> bool:
    """Return whether a module without parameters computes the exact GELU."""
    if next(module.children(), None) or next(module.parameters(), None) is not None:
        return False
    probe = torch.linspace(-3, 3, 7)
    try:
        return torch.equal(module(probe), gelu(probe))
    except (AttributeError, RuntimeError, TypeError, ValueError):
        return False


def _modules(stages: Sequence[Stage]) -> list[nn.Module]:
    """Return the modules of the stages' layers, without duplicates."""
    layers = dict.fromkeys(layer for stage in stages for layer in stage.layers.stack)
    return list(dict.fromkeys(module for layer in layers for module in layer.modules()))


def _watch(run: Callable[[], Any], hooks: Sequence[Any]) -> None:
    """Run, then remove the hooks."""
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()


def _replace(modules: Sequence[nn.Module], places: dict[nn.Module, nn.Module]) -> None:
    """Replace modules wherever they occur within these."""
    for parent in modules:
        for name, child in list(parent.named_children()):
            if child in places:
                setattr(parent, name, places[child])


def compile_layers(stages: Sequence[Stage]) -> None:
    """Compile large layers for calls with many tokens; a failure falls back to the uncompiled layers."""
    for stage in stages:
        whole = stage.layers.stack[:-1] if stage.answers and stage.decoder is None else stage.layers.stack
        for layer in dict.fromkeys(whole):
            if sum(weight.numel() for weight in layer.parameters()) >= LARGE:
                vars(layer)["forward"] = _Compiled(layer.forward)


class _Compiled:
    """A layer's forward pass, compiled for calls with many tokens."""

    broken = False

    def __init__(self, forward: Callable[..., Any]) -> None:
        self._plain = forward
        self._after: tuple[Join, Tensor, Tensor] | None = None

    @contextmanager
    def followed_by(self, join: Join, prompt: Tensor, index: Tensor) -> Iterator[None]:
        """Let the prompt [1, n, H] of the next stage join the layer's output in this block."""
        self._after = join, prompt, index
        try:
            yield
        finally:
            self._after = None

    def __call__(self, states: Tensor, *args: Any, **kwargs: Any) -> Any:
        given = (self._plain, self._after, states, *args)
        if _Compiled.broken or states.shape[0] * states.shape[1] < COMPILE_FROM:
            return _run(*given, **kwargs)
        try:
            return self._compiled(*given, **kwargs)
        except Exception as error:
            if "out of memory" in str(error):
                raise
            _Compiled.broken = True
            logger.warning("layers cannot be compiled here: continuing without (%s)", first_line(error))
            return _run(*given, **kwargs)

    @cached_property
    def _compiled(self) -> Callable[..., Any]:
        # A layer is left at its attention. Without this option, each module that is left so ends its kernels there.
        whole = torch._dynamo.config.patch(nested_graph_breaks=True)
        compiled: Callable[..., Any] = whole(torch.compile(_run, dynamic=True))
        return compiled


def _run(
    forward: Callable[..., Any], after: tuple[Join, Tensor, Tensor] | None, states: Tensor, *args: Any, **kwargs: Any
) -> Any:
    """Run a layer, and the join of the next stage after it."""
    output = forward(states, *args, **kwargs)
    if after is None:
        return output
    join, prompt, index = after
    states = output if isinstance(output, Tensor) else output[0]
    return join(states[:, None], prompt, index)[0][:, 0]


class FusedRunner(ModuleRunner):
    """Runs stages as PyTorch modules; a committed prompt joins in the kernel that ends the compiled layer below."""

    def chain(self, first: int, hidden: Tensor, prompts: Sequence[Tensor], tensors: dict[str, Tensor]) -> Tensor:
        """Run consecutive stages; see ``Runner``."""
        if not prompts:
            return hidden
        joined = self._joined(first, hidden, prompts[0], tensors)
        for stage, above in enumerate(prompts[1:], first):
            join, layer = self._stages[stage + 1].join, self._stages[stage].layers.stack[-1].forward
            if isinstance(layer, _Compiled) and join.kind == "add_row" and len(above) == 1:
                with layer.followed_by(join, above, *(tensors[name] for name in join.names)):
                    joined = (self._run(stage, joined, tensors),)
            else:
                joined = self._joined(stage + 1, self._run(stage, joined, tensors), above, tensors)
        return self._run(first + len(prompts) - 1, joined, tensors)
