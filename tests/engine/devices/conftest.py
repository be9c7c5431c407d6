"""A second device without hardware.

elsewhere    a context manager: while it lasts, ``torch.device("meta")`` is a device whose tensors have values. They are
             computed on the CPU, but a computation that mixes them with the CPU's own tensors fails, as on CUDA.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from bbt_fast.engine.base import Engine

META = torch.device("meta")
READS = {torch.ops.aten._local_scalar_dense.default}
MIXES = {torch.ops.aten.copy_.default, torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default}
"""What may take tensors of two devices: copies, and indices on the CPU."""


class There(Tensor):
    """A tensor on the second device."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> There:
        shape = {"strides": inner.stride(), "storage_offset": inner.storage_offset()}
        made: There = Tensor._make_wrapper_subclass(cls, inner.size(), **shape, dtype=inner.dtype, device=META)
        made.inner = inner
        return made

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


class Elsewhere(TorchDispatchMode):
    """Makes and moves tensors to the second device where it is asked for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operator on the CPU, and put what it returns where it belongs."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = any(isinstance(tensor, There) for tensor in tensors)
    here = [tuple(tensor.shape) for tensor in tensors if not isinstance(tensor, There) and tensor.ndim]
    if kwargs.get("device") is not None:
        there = torch.device(kwargs["device"]) == META
        kwargs = kwargs | {"device": torch.device("cpu")}
    elif there and here and func not in MIXES:
        raise RuntimeError(f"{func} mixes two devices: tensors of shapes {here} are on the CPU")
    inner_args, inner_kwargs = tree_map(lambda leaf: leaf.inner if isinstance(leaf, There) else leaf, (args, kwargs))
    found = func(*inner_args, **inner_kwargs)
    if func._schema.is_mutable:
        return args[0]
    if not there or func in READS:
        return found
    return tree_map(lambda leaf: There(leaf) if isinstance(leaf, Tensor) else leaf, found)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], contextlib.AbstractContextManager[None]]]:
    """A function that returns a context in which tensors are on a second, simulated device."""
    monkeypatch.setattr(Engine, "bucket_overhead", Engine.bucket_overhead | {"meta": 0})
    swaps = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)

    @contextlib.contextmanager
    def second_device() -> Iterator[None]:
        with monkeypatch.context() as patch, Elsewhere(), sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            patch.setattr(torch, "inference_mode", torch.no_grad)  # whose tensors cannot be wrapped
            yield

    yield second_device
    torch.__future__.set_overwrite_module_params_on_conversion(swaps)
