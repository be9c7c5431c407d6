"""What a stock model passes to its layers, recorded by running it once.

A `transformers` model makes masks, position embeddings and relative biases from the text alone and hands them to every
layer. None of them depends on a prompt, so they are recorded once per data set: a layer is then a function of its
hidden states and of these tensors, and no modelling code has to be copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


@dataclass(frozen=True)
class Ref:
    """A recorded tensor, by name, in the place where a layer takes it."""

    name: str


@dataclass(frozen=True, eq=False)
class Call:
    """How the model calls one layer, after the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __call__(self, layer: nn.Module, hidden: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        """Run the layer on [B, S, H] with these tensors for the recorded ones; return its hidden states."""

        def bind(leaf: Any) -> Any:
            return tensors[leaf.name] if isinstance(leaf, Ref) else leaf

        args, kwargs = pytree.tree_map(bind, (self.args, self.kwargs), is_leaf=lambda x: isinstance(x, Ref))
        output = layer(hidden, *args, **kwargs)
        return output if isinstance(output, Tensor) else output[0]

    @property
    def names(self) -> tuple[str, ...]:
        """The recorded tensors this call takes, in order."""
        leaves = pytree.tree_leaves((self.args, self.kwargs), is_leaf=lambda x: isinstance(x, Ref))
        return tuple(dict.fromkeys(leaf.name for leaf in leaves if isinstance(leaf, Ref)))


@dataclass(frozen=True, eq=False)
class Recording:
    """One forward pass of a stock model, seen at its layers."""

    embedded: Tensor
    """[N, S, H], what the embeddings module returned."""
    tensors: dict[str, Tensor]
    calls: tuple[Call, ...]


@contextmanager
def _forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Run ``forward`` in the place of a module's own within this block."""
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        del vars(module)["forward"]


def record(
    run: Callable[[], Any], embeddings: nn.Module, layers: list[nn.Module], embedded: Tensor | None = None
) -> Recording:
    """Run a model and record what its embeddings return and what its layers are given.

    Args:
        run: runs the stock model.
        embeddings: the module whose output counts as embedded text.
        layers: the layers to record; they pass their hidden states through unchanged.
        embedded: [N, S, H], returned by the embeddings module in the place of its own output, if given.
    """
    tensors: dict[str, Tensor] = {}
    names: dict[int, str] = {}
    calls: list[Call] = []
    seen: list[Tensor] = []
    stock = embeddings.forward

    def embed(*args: Any, **kwargs: Any) -> Tensor:
        seen.append(stock(*args, **kwargs) if embedded is None else embedded)
        return seen[-1]

    def name(path: Any, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if id(leaf) not in names:
            stem = "_".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path)
            names[id(leaf)] = stem if stem not in tensors else f"{stem}_layer{len(calls)}"
            tensors[names[id(leaf)]] = leaf
        return Ref(names[id(leaf)])

    def spy(layer: nn.Module) -> Callable[..., Any]:
        parameters = _positional_names(layer)

        def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            named = dict(zip(parameters[1:], args, strict=False))
            positional = pytree.tree_map_with_path(name, named)
            calls.append(Call(tuple(positional.values()), pytree.tree_map_with_path(name, kwargs)))
            return hidden

        return forward

    with torch.no_grad(), ExitStack() as stack:
        stack.enter_context(_forward(embeddings, embed))
        for layer in layers:
            stack.enter_context(_forward(layer, spy(layer)))
        run()
    return Recording(seen[0], tensors, tuple(calls))


def _positional_names(layer: nn.Module) -> list[str]:
    code = type(layer).forward
    code = getattr(code, "__wrapped__", code)
    return list(code.__code__.co_varnames[1 : code.__code__.co_argcount])
