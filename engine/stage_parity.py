"""The parity gate of one stage, for plans that are built during a run."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..export.model import StagedModel
from ..export.parity import POPULATION, Parity, compare
from ..export.stages import Stage
from .reference import ModuleRunner

PERTURBATION = 0.1
"""The difference between the states of a population, relative to their standard deviation."""


def measure_stage(
    staged: StagedModel,
    stages: tuple[Stage, ...],
    run: Callable[[int, Tensor, Tensor, dict[str, Tensor]], Tensor],
    stage: int,
    hidden: Tensor,
    prompt: Tensor,
    tensors: dict[str, Tensor],
) -> Parity:
    """Compare one stage with PyTorch fp32 by the resulting losses.

    A random population with the given shapes enters the stage. PyTorch runs all stages above it, so any difference
    comes from the stage.

    Args:
        staged: the model, on the tensors' device.
        stages: the chain.
        run: runs a stage of the chain to be checked.
        stage: the stage's number.
        hidden: [P', N, S, H], as in the run.
        prompt: [P, n, H], likewise.
        tensors: the stages' other inputs, by name.
    """
    generator = torch.Generator().manual_seed(stage)
    spread = float(hidden.float().std())
    reference = ModuleRunner(stages)
    exact = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}

    def noise(*shape: int) -> Tensor:
        drawn: Tensor = (torch.randn(shape, generator=generator) * spread).to(hidden.device, hidden.dtype)
        return drawn

    def answer(start: int, states: Tensor, first_prompt: Tensor) -> Tensor:
        for number in range(start, staged.n_stages):
            states = reference(number, states, first_prompt if number == stage else nothing, exact)
        return states

    nothing = torch.zeros_like(prompt[:1], dtype=torch.float32)
    expected, found = [], []
    candidates = max(hidden.shape[0], prompt.shape[0])
    for _ in range(-(-POPULATION // candidates)):
        prompts = noise(*prompt.shape) if len(prompt) == candidates else prompt
        states = hidden
        if hidden.shape[0] > 1:
            states = (hidden[:1] + PERTURBATION * noise(len(hidden), 1, *hidden.shape[2:])).contiguous()
        returned = run(stage, states, prompts, tensors).float()
        for number in range(candidates):  # one by one, because fp32 states take twice the memory
            mine = slice(number, number + 1) if len(states) > 1 else slice(None)
            asked = slice(number, number + 1) if len(prompts) > 1 else slice(None)
            expected.append(answer(stage, states[mine].float(), prompts[asked].float()))
            found.append(answer(stage + 1, returned[number : number + 1], nothing))
    return compare(torch.cat(expected), torch.cat(found))
