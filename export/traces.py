"""Stages that differ in weights alone share one trace.

PyTorch's exporter takes seconds for a layer, nearly all of them for tracing: a layer's weights play no part until
constants are folded. So a trace is kept in the graph cache as the exporter first writes it, with every weight an input
under its own name. Another stage of that structure, of this model or of any other, puts its own weights there, and all
that follows, folding and fusing, happens once more. What comes out is, byte for byte, what a trace of that very stage
would give. A stage of many layers is traced as its layers are, one by one, so that 24 layers take two traces.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
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
"""The packages whose version shapes a graph."""
FILE = "trace.onnx"

Trace = Callable[[Stage, tuple[Tensor, ...]], ir.Model]
"""Traces a stage, called with its samples, and returns the graph before any optimization."""


def graph_of(stage: Stage, samples: Mapping[str, Tensor], dtype: torch.dtype, trace: Trace) -> ir.Model:
    """Return the optimized graph of a stage: that of its layers, each traced by itself, one behind the other.

    Args:
        stage: the stage; it is left as it is.
        samples: what forward() takes by name, in the graph's dtype.
        dtype: what the graph computes in.
        trace: traces a stage, if none of its structure has been traced before.

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
    """Return the graph of a stage as the exporter first writes it, with the weights of this very stage."""
    weights = cast_weights(stage, dtype)
    key = structure(stage, weights, samples)

    def build(folder: Path) -> None:
        model = trace(with_weights(stage, weights), samples)
        ir.save(_take_weights(model, weights), folder / FILE)

    if key is None:
        model = _take_weights(trace(with_weights(stage, weights), samples), weights)
    else:
        model = ir.load(entry({"trace": key, "versions": shaping_versions()}, build) / FILE)
    return _put_weights(model, weights)


def shaping_versions() -> dict[str, str]:
    """Return the versions of the packages that shape a graph."""
    return {name: version(name) for name in SHAPING}


def _take_weights(model: ir.Model, names: Mapping[str, Tensor]) -> ir.Model:
    """Turn the initializers of these names into inputs."""
    for name in [name for name in model.graph.initializers if name in names]:
        value = model.graph.initializers.pop(name)
        value.const_value = None
        model.graph.inputs.append(value)
    ClearMetadataAndDocStringPass()(model)
    return model


def _put_weights(model: ir.Model, weights: Mapping[str, Tensor]) -> ir.Model:
    """Turn the inputs of these names into initializers that hold the weights."""
    for value in [value for value in model.graph.inputs if value.name in weights]:
        model.graph.inputs.remove(value)
        value.const_value = TorchTensor(weights[str(value.name)].detach(), value.name)
        model.graph.register_initializer(value)
    return model


def cast_weights(stage: Stage, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return a stage's parameters and buffers by name, on the CPU, real numbers in a dtype.

    One that has several names is one tensor; one that is as it should be is not copied.
    """
    made: dict[int, Tensor] = {}
    for _, tensor in _named(stage):
        if id(tensor) not in made:
            made[id(tensor)] = tensor.detach().to("cpu", dtype if tensor.is_floating_point() else tensor.dtype)
    return {name: made[id(tensor)] for name, tensor in _named(stage)}


def with_weights(stage: Stage, weights: dict[str, Tensor]) -> Stage:
    """Return a stage that has other weights by the same names, and shares them."""
    memo: dict[int, Any] = {}
    for name, tensor in _named(stage):
        if isinstance(tensor, nn.Parameter):
            memo.setdefault(id(tensor), nn.Parameter(weights[name], requires_grad=False))
        else:
            memo.setdefault(id(tensor), weights[name])
    return copy.deepcopy(stage, memo)


def structure(stage: Stage, weights: dict[str, Tensor], samples: tuple[Tensor, ...]) -> str | None:
    """Return a digest of everything in a stage that shapes its trace, but for the weights' numbers.

    The stage runs on tensors without content, and what is noted is what PyTorch is asked to compute: each operation,
    its arguments, and which weights, samples and earlier results it takes. Nothing is concluded from names of modules.

    Returns:
        The digest; None if the stage does not run without numbers, so that it shares with no other.
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
                tie_weights=False,  # every place is named
            )
    except (RuntimeError, AssertionError):  # for want of numbers, mostly
        return None
    return hashlib.sha256("\n".join(noted).encode()).hexdigest()


class _Notes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Takes down each operation and what it is given."""

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
        """Name a tensor by its number, one that came from nowhere by its content, and anything else as it is."""
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
    """Return one name of each place that holds a parameter or buffer: a module that stands twice is named once.

    functional_call() puts back what it found, and at the second name of one place it finds its own substitute.
    """
    return [
        f"{path}.{name}" if path else name
        for path, module in stage.named_modules()
        for name in (*module._parameters, *module._buffers)
        if getattr(module, name) is not None
    ]
