"""Record the inputs that a stock model passes to its layers.

A `transformers` model computes masks, position embeddings and relative biases from the text and passes them to every
layer. They do not depend on the prompt, so one recording per data set is enough. A layer is then a function of its
hidden states and these tensors, and no modelling code has to be copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from inspect import signature
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from .errors import UsageError


@dataclass(frozen=True)
class Ref:
    """Placeholder for a recorded tensor in a layer's arguments."""

    name: str


@dataclass(frozen=True, eq=False)
class Call:
    """The arguments of one layer after the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __call__(self, layer: nn.Module, hidden: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Run the layer on [B, S, H] with these tensors in place of the recorded ones; return its hidden states."""

        def bind(leaf: Any) -> Any:
            return tensors[leaf.name] if isinstance(leaf, Ref) else leaf

        args, kwargs = pytree.tree_map(bind, (self.args, self.kwargs))
        with _AlwaysClamped() if hidden.dtype is torch.float16 else nullcontext():
            output = layer(hidden, *args, **kwargs)
        return output if isinstance(output, Tensor) else output[0]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the recorded tensors in this call, in order."""
        leaves = pytree.tree_leaves((self.args, self.kwargs))
        return tuple(dict.fromkeys(leaf.name for leaf in leaves if isinstance(leaf, Ref)))

    def completed(self, later: Call) -> Call:
        """Return this call with its None arguments filled in from a later layer's recorded tensors."""
        mine, spec = pytree.tree_flatten((self.args, self.kwargs))
        other, other_spec = pytree.tree_flatten((later.args, later.kwargs))
        if spec != other_spec:
            return self
        leaves = [b if a is None and isinstance(b, Ref) else a for a, b in zip(mine, other, strict=True)]
        return Call(*pytree.tree_unflatten(leaves, spec))


@dataclass(frozen=True, eq=False)
class Recording:
    """The recorded layer inputs of one forward pass."""

    entered: Tensor
    """[N, S, H], the first layer's hidden states."""
    tensors: dict[str, Tensor]
    calls: tuple[Call, ...]
    """One per layer, in order."""


class _AlwaysClamped(TorchFunctionMode):
    """Makes a layer clamp float16 hidden states unconditionally.

    The layers of BART and T5 clamp hidden states to 1000 below float16's maximum, 65504, but only if the batch contains
    an infinity. That check would make a row depend on its neighbours and make the host wait for the device, which
    prevents export and CUDA graphs. The unconditional clamp changes only numbers above 64504.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.isfinite:
            return _known(False)
        if func is torch.isinf:
            return _known(torch.ones((), dtype=torch.bool, device=args[0].device))
        return func(*args, **(kwargs or {}))


def _known(answer: Any) -> Any:
    """Return a stand-in for a boolean tensor whose all() and any() are known."""
    return SimpleNamespace(all=lambda: answer, any=lambda: answer)


@contextmanager
def replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Replace a module's ``forward`` within this block."""
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        del vars(module)["forward"]


def record(
    run: Callable[[], Any],
    layers: Sequence[nn.Module],
    *,
    given: Mapping[str, Tensor] | None = None,
    prefix: str = "",
    chained: bool = False,
) -> Recording:
    """Run a model and record the inputs of its layers.

    Args:
        run: runs the stock model.
        layers: the layers in the order in which they run; a layer that runs twice is listed twice.
        given: tensors that already have a name and are not recorded.
        prefix: prefix of the recorded tensors' names.
        chained: run the layers, because they return more than hidden states; else each returns its input.

    Raises:
        UsageError: if the model runs other layers, or computes something between them.
    """
    tensors: dict[str, Tensor] = {}
    names = {id(tensor): name for name, tensor in (given or {}).items()}
    calls: list[Call] = []
    ran: list[nn.Module] = []
    entered: list[Tensor] = []
    left: list[Tensor] = []

    def name(path: Any, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if id(leaf) not in names:
            stem = prefix + "_".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path)
            names[id(leaf)] = stem if stem not in tensors else f"{stem}_layer{len(calls)}"
            tensors[names[id(leaf)]] = leaf
        return Ref(names[id(leaf)])

    def spy(layer: nn.Module) -> Callable[..., Any]:
        stock = layer.forward
        parameters = list(signature(stock).parameters)

        def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            named = dict(zip(parameters[1:], args, strict=False))
            positional = pytree.tree_map_with_path(name, named)
            if left and hidden is not left[-1]:
                raise UsageError(
                    "this model computes something between its layers, such as the convolution of large DeBERTa "
                    "models, and is not supported. Use another model."
                )
            calls.append(Call(tuple(positional.values()), pytree.tree_map_with_path(name, kwargs)))
            ran.append(layer)
            entered.append(hidden)
            output = stock(hidden, *args, **kwargs) if chained else hidden
            left.append(output if isinstance(output, Tensor) else output[0])
            return output

        return forward

    with torch.no_grad(), ExitStack() as stack:
        for layer in dict.fromkeys(layers):
            stack.enter_context(replaced(layer, spy(layer)))
        run()
    if list(map(id, ran)) != list(map(id, layers)):
        raise UsageError(f"the model ran {len(ran)} layers, but its family's row lists {len(layers)} others.")
    if chained and len(calls) > 1:
        calls[0] = calls[0].completed(calls[1])
    return Recording(entered[0], tensors, tuple(calls))
