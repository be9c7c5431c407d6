"""Share one trace among stages that differ only in their weights.

PyTorch's exporter takes seconds per layer, nearly all for tracing. The weights do not matter before constants are
folded. So the graph cache keeps each unoptimized trace, with every weight as a named input. Any stage with the same
structure, of any model, inserts its own weights and runs the optimizations. The result is byte for byte the same as a
trace of that stage. A stage of several layers is traced layer by layer, so 24 layers take two traces.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from onnx_ir.tensor_adapters import TorchTensor
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from .cache import entry
from .chain import chain
from .stages import Stage

SHAPING = ("bbt-fast", "torch", "transformers", "onnx", "onnxscript", "onnx-ir")
"""The packages whose versions affect a graph."""
FILE = "trace.onnx"

Trace = Callable[[Stage, tuple[Tensor, ...]], ir.Model]
"""Traces a stage with its samples and returns the unoptimized graph."""


def graph_of(stage: Stage, samples: Mapping[str, Tensor], dtype: torch.dtype, trace: Trace) -> ir.Model:
    """Return the optimized graph of a stage, concatenated from the traces of its layers.

    Args:
        stage: the stage; it is not modified.
        samples: the arguments of forward() by name, in the graph's dtype.
        dtype: the graph's compute dtype.
        trace: traces a stage; called if the cache has no trace of its structure.

    Raises:
        ArtifactError: if the cache folder cannot be written.
    """
    links = [
        _graph(link, tuple(samples[name] for name in (*link.joined_axes, *link.names)), dtype, trace)
        for link in stage.links()
    ]
    program = torch.onnx.ONNXProgram(chain(links, stage.names) if len(links) > 1 else links[0], None)
    program.optimize()
    return program.model


def _graph(stage: Stage, samples: tuple[Tensor, ...], dtype: torch.dtype, trace: Trace) -> ir.Model:
    """Return the unoptimized graph of a stage, with its weights."""
    weights = cast_weights(stage, dtype)
    key = structure(stage, weights, samples)

    def traced() -> ir.Model:
        return _take_weights(trace(with_weights(stage, weights), samples), weights)

    if key is None:
        return _put_weights(traced(), weights)
    kept = {"trace": key, "versions": shaping_versions()}
    folder = entry(kept, lambda folder: ir.save(traced(), folder / FILE))
    return _put_weights(ir.load(folder / FILE), weights)


def shaping_versions() -> dict[str, str]:
    """Return the versions of the packages that affect a graph."""
    return {name: version(name) for name in SHAPING}


def _take_weights(model: ir.Model, names: Mapping[str, Tensor]) -> ir.Model:
    """Turn the initializers with these names into inputs."""
    for name in [name for name in model.graph.initializers if name in names]:
        value = model.graph.initializers.pop(name)
        value.const_value = None
        model.graph.inputs.append(value)
    ClearMetadataAndDocStringPass()(model)
    return model


def _put_weights(model: ir.Model, weights: Mapping[str, Tensor]) -> ir.Model:
    """Turn the inputs with these names into initializers that hold the weights."""
    for value in [value for value in model.graph.inputs if value.name in weights]:
        model.graph.inputs.remove(value)
        value.const_value = TorchTensor(weights[str(value.name)].detach(), value.name)
        model.graph.register_initializer(value)
    return model


def cast_weights(stage: Stage, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return a stage's parameters and buffers by name, on the CPU, floating-point ones in a dtype.

    A tensor with several names stays one tensor. A tensor that needs no conversion is not copied.
    """
    cast = {
        id(tensor): tensor.detach().to("cpu", dtype if tensor.is_floating_point() else tensor.dtype)
        for tensor in dict.fromkeys(tensor for _, tensor in _named(stage))
    }
    return {name: cast[id(tensor)] for name, tensor in _named(stage)}


def with_weights(stage: Stage, weights: dict[str, Tensor]) -> Stage:
    """Return a copy of a stage that shares these weights instead of its own."""
    memo: dict[int, Any] = {}
    for name, tensor in _named(stage):
        if isinstance(tensor, nn.Parameter):
            memo.setdefault(id(tensor), nn.Parameter(weights[name], requires_grad=False))
        else:
            memo.setdefault(id(tensor), weights[name])
    return copy.deepcopy(stage, memo)


def structure(stage: Stage, weights: dict[str, Tensor], samples: tuple[Tensor, ...]) -> str | None:
    """Return the digest of everything in a stage that determines its trace, except the weights' values.

    The stage runs on fake tensors, and every PyTorch operation is recorded with its arguments: weights, samples,
    earlier results and constants. Module names play no role.

    Returns:
        The digest; None if the stage cannot run on fake tensors. Its trace is then not shared.
    """
    numbers: dict[int, int] = {}
    noted = [
        f"{type(stage).__name__} {stage.join.outputs} {stage.answers} {stage.axes} {stage.joined_axes}",
        *(f"{name} {tensor.dtype} {list(tensor.shape)}" for name, tensor in weights.items()),
    ]
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fakes = {id(tensor): mode.from_tensor(tensor) for tensor in (*weights.values(), *samples)}
    for tensor in (*weights.values(), *samples):
        noted.append(f"{numbers.setdefault(id(fakes[id(tensor)]), len(numbers))} {tensor.dtype} {tensor.stride()}")
    try:
        with torch.no_grad(), mode, _Notes(noted, numbers):
            torch.func.functional_call(
                stage,
                {name: fakes[id(weights[name])] for name in _places(stage)},
                tuple(fakes[id(tensor)] for tensor in samples),
                tie_weights=False,  # every place has its own name
            )
    except (RuntimeError, AssertionError):  # mostly code that depends on values
        return None
    return hashlib.sha256("\n".join(noted).encode()).hexdigest()


class _Notes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records each operation with its arguments."""

    def __init__(self, noted: list[str], numbers: dict[int, int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._noted, self._numbers = noted, numbers
        self._alive: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        leaves, spec = pytree.tree_flatten((args, kwargs or {}))
        self._noted.append(f"{func} {spec} {[self._note(leaf) for leaf in leaves]}")
        results = func(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves(results):
            if isinstance(tensor, Tensor):
                self._alive.append(tensor)
                number = self._numbers.setdefault(id(tensor), len(self._numbers))
                self._noted.append(f"{number} {tensor.dtype} {list(tensor.shape)} {tensor.stride()}")
        return results

    def _note(self, leaf: Any) -> str:
        """Describe an argument: a known tensor by its number, an unknown one by its content, other values by repr."""
        if not isinstance(leaf, Tensor):
            return repr(leaf)
        if id(leaf) in self._numbers:
            return f"tensor {self._numbers[id(leaf)]}"
        with unset_fake_temporarily():
            return f"constant {leaf.dtype} {leaf.tolist()}"


def _named(stage: Stage) -> list[tuple[str, Tensor]]:
    """Return all names of all parameters and buffers, in order."""
    return [
        *stage.named_parameters(remove_duplicate=False),
        *stage.named_buffers(remove_duplicate=False),
    ]


def _places(stage: Stage) -> list[str]:
    """Return one name for each place of a parameter or buffer, also if its module is listed twice.

    With two names for one place, functional_call() would restore its own substitute instead of the original.
    """
    return [
        f"{path}.{name}" if path else name
        for path, module in stage.named_modules()
        for name in (*module._parameters, *module._buffers)
        if getattr(module, name) is not None
    ]
