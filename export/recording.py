"""What a stock model passes to its layers, recorded by running it once.

A `transformers` model makes masks, position embeddings and relative biases from the text alone and hands them to every
layer. None of them depends on a prompt, so they are recorded once per data set: a layer is then a function of its
hidden states and of these tensors, and no modelling code has to be copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from .errors import UsageError


@dataclass(frozen=True)
class Ref:
    """A recorded tensor, by name, in the place where a layer takes it."""

    name: str


@dataclass(frozen=True, eq=False)
class Call:
    """How the model calls one layer, after the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __call__(self, layer: nn.Module, hidden: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Run the layer on [B, S, H] with these tensors for the recorded ones; return its hidden states."""

        def bind(leaf: Any) -> Any:
            return tensors[leaf.name] if isinstance(leaf, Ref) else leaf

        args, kwargs = pytree.tree_map(bind, (self.args, self.kwargs))
        with _AlwaysClamped() if hidden.dtype is torch.float16 else nullcontext():
            output = layer(hidden, *args, **kwargs)
        return output if isinstance(output, Tensor) else output[0]

    @property
    def names(self) -> tuple[str, ...]:
        """The recorded tensors this call takes, in order."""
        leaves = pytree.tree_leaves((self.args, self.kwargs))
        return tuple(dict.fromkeys(leaf.name for leaf in leaves if isinstance(leaf, Ref)))

    def completed(self, later: Call) -> Call:
        """Return this call with what a later layer was given and this layer was not."""
        mine, spec = pytree.tree_flatten((self.args, self.kwargs))
        other, other_spec = pytree.tree_flatten((later.args, later.kwargs))
        if spec != other_spec:
            return self
        leaves = [b if a is None and isinstance(b, Ref) else a for a, b in zip(mine, other, strict=True)]
        return Call(*pytree.tree_unflatten(leaves, spec))


@dataclass(frozen=True, eq=False)
class Recording:
    """One forward pass of a stock model, seen at its layers."""

    entered: Tensor
    """[N, S, H], what the first layer was given."""
    tensors: dict[str, Tensor]
    calls: tuple[Call, ...]
    """One per layer, in order."""


class _AlwaysClamped(TorchFunctionMode):
    """Has a layer clamp its float16 numbers without looking at them.

    The layers of BART and T5 keep hidden states 1000 below float16's largest number, 65504, but only if one of a batch
    is infinite. To look would make a row depend on its neighbours, and have the host wait for the device: such a layer
    can neither be exported nor be recorded as a CUDA graph. Always clamped, only numbers above 64504 change.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.isfinite:
            return _Told(False)
        if func is torch.isinf:
            return _Told(torch.ones((), dtype=torch.bool, device=args[0].device))
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True, eq=False)
class _Told:
    """Stands for a tensor of truth values of which all() and any() are known."""

    answer: Any

    def all(self) -> Any:
        """Say whether all are true."""
        return self.answer

    any = all


@contextmanager
def replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Run ``forward`` in the place of a module's own within this block."""
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
    """Run a model and record what its layers are given.

    Args:
        run: runs the stock model.
        layers: the layers to record, in the order in which they run; one that runs twice stands there twice.
        given: tensors that have a name already and are not recorded.
        prefix: begins the names of the recorded tensors.
        chained: whether the layers must really run, because they return more than hidden states.

    Raises:
        UsageError: if the model runs other layers than these.
    """
    tensors: dict[str, Tensor] = {}
    names = {id(tensor): name for name, tensor in (given or {}).items()}
    calls: list[Call] = []
    ran: list[nn.Module] = []
    entered: list[Tensor] = []

    def name(path: Any, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if id(leaf) not in names:
            stem = prefix + "_".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path)
            names[id(leaf)] = stem if stem not in tensors else f"{stem}_layer{len(calls)}"
            tensors[names[id(leaf)]] = leaf
        return Ref(names[id(leaf)])

    def spy(layer: nn.Module) -> Callable[..., Any]:
        parameters, stock = _positional_names(layer), layer.forward

        def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            named = dict(zip(parameters[1:], args, strict=False))
            positional = pytree.tree_map_with_path(name, named)
            calls.append(Call(tuple(positional.values()), pytree.tree_map_with_path(name, kwargs)))
            ran.append(layer)
            entered.append(hidden)
            return stock(hidden, *args, **kwargs) if chained else hidden

        return forward

    with torch.no_grad(), ExitStack() as stack:
        for layer in dict.fromkeys(layers):
            stack.enter_context(replaced(layer, spy(layer)))
        run()
    if list(map(id, ran)) != list(map(id, layers)):
        raise UsageError(f"the model ran {len(ran)} layers, but {len(layers)} others were expected.")
    if chained and len(calls) > 1:
        calls[0] = calls[0].completed(calls[1])
    return Recording(entered[0], tensors, tuple(calls))


def _positional_names(layer: nn.Module) -> list[str]:
    code = type(layer).forward
    code = getattr(code, "__wrapped__", code)
    return list(code.__code__.co_varnames[1 : code.__code__.co_argcount])
