"""The parity gate of a stage chain: compare its answers with those of PyTorch modules on the same probes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial

import torch
from torch import Tensor

from ..export.graphs import cast_dtype
from ..export.model import Encoded, StagedModel
from ..export.parity import Parity, judge, probe_prompts
from ..export.precision import Precision
from ..export.stages import Stage
from .faults import is_out_of_memory, release_memory
from .prefix import run_prefix
from .reference import ModuleRunner
from .runner import Runner


def measure(
    staged: StagedModel,
    encoded: Encoded,
    precision: Precision,
    device: torch.device,
    found: Callable[[int, Tensor], Tensor],
) -> Parity:
    """Compare a chain with PyTorch on a population, at the first and the last cut; return the worse figures.

    PyTorch runs in fp32 on the engine's device. If that device runs out of memory, it runs on the model's device, which
    can take seconds longer.

    Args:
        staged: the model.
        encoded: an example of the stages' inputs, fp32 on the model's device.
        precision: the precision of the chain.
        device: the device of the chain.
        found: the chain's answers to prompts [P, L or 1, n, H] at a layer.
    """
    try:
        return _compared(staged, encoded, precision, device, found)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or device == encoded.hidden.device:
            raise
        release_memory()
        return _compared(staged, encoded, precision, encoded.hidden.device, found)
    finally:
        if device != encoded.hidden.device:
            release_memory()


def placed(encoded: Encoded, device: torch.device, dtype: torch.dtype) -> Encoded:
    """Move the stages' inputs to a device, in a dtype."""
    tensors = {k: v.to(device, cast_dtype(k, v.dtype, dtype)).contiguous() for k, v in encoded.tensors.items()}
    hidden = encoded.hidden.to(device, dtype).contiguous()
    prefix = None if encoded.prefix is None else placed(encoded.prefix, device, dtype)
    row = None if encoded.row is None else encoded.row.to(device)
    return replace(encoded, hidden=hidden, tensors=tensors, prefix=prefix, row=row, whole=None)


def probe(at: Encoded, run: Runner, run_before: Runner | None, layer: int, prompts: Tensor) -> Tensor:
    """Return a chain's answers to prompts [P, L or 1, n, H] at one layer; other layers have the first candidate's."""
    moved = prompts.to(at.hidden.device, at.hidden.dtype)
    stages = range(moved.shape[1])
    entering = [moved[: None if stage == layer else 1, stage].contiguous() for stage in stages]
    with torch.inference_mode():
        if at.prefix is not None and run_before is not None:
            entering = run_prefix(run_before, at.prefix, at.prefix.hidden, entering, 0)
        hidden = run.chain(0, at.hidden, entering[:layer], at.tensors_for(1))
        return run.chain(layer, hidden, entering[layer:], at.tensors_for(len(moved)))


def _compared(
    staged: StagedModel,
    encoded: Encoded,
    precision: Precision,
    device: torch.device,
    found: Callable[[int, Tensor], Tensor],
) -> Parity:
    """Do the same as ``measure``, with PyTorch on this device."""
    prompts = probe_prompts(staged)
    widest = float(encoded.hidden.std().cpu() / prompts.std())
    modules = cache(partial(_modules, encoded.whole or encoded, device))

    def answer(dtype: torch.dtype, layer: int, some: Tensor) -> Tensor:
        return probe(*modules(dtype), layer, some)

    parities = [
        judge(
            prompts,
            widest,
            precision,
            reference=partial(answer, torch.float32, layer),
            found=partial(found, layer),
            rounded=partial(answer, precision.dtype, layer),
        )
        for layer in {0, staged.n_stages - 1}
    ]
    return min(parities, key=lambda parity: parity.spearman)


def _modules(encoded: Encoded, device: torch.device, dtype: torch.dtype) -> tuple[Encoded, Runner, Runner | None]:
    """Return the stages' inputs, their PyTorch runner and that of the shared prefix, on a device in a dtype."""

    def runner(stages: tuple[Stage, ...]) -> Runner:
        own = dtype is torch.float32 and device == encoded.hidden.device
        return ModuleRunner(stages if own else tuple(stage.to(device, dtype) for stage in copy.deepcopy(stages)))

    before = None if encoded.prefix is None else runner(encoded.prefix.stages)
    return placed(encoded, device, dtype), runner(encoded.stages), before
