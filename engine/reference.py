"""Run stages as PyTorch modules: the reference of the parity gate."""

from __future__ import annotations

from torch import Tensor

from ..export.stages import Stage
from .runner import Runner


class ModuleRunner(Runner):
    """Runs stages as PyTorch modules."""

    def __init__(self, stages: tuple[Stage, ...]) -> None:
        """Take stages; the tensors must have their device and dtype."""
        self._stages = stages

    def __call__(self, stage: int, hidden: Tensor, prompt: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        """Join the prompt and run a stage."""
        return self._run(stage, self._joined(stage, hidden, prompt, tensors), tensors)

    def _joined(self, stage: int, hidden: Tensor, prompt: Tensor, tensors: dict[str, Tensor]) -> tuple[Tensor, ...]:
        join = self._stages[stage].join
        return join(hidden, prompt, *(tensors[name] for name in join.names))

    def _run(self, stage: int, joined: tuple[Tensor, ...], tensors: dict[str, Tensor]) -> Tensor:
        part = self._stages[stage]
        out: Tensor = part(*joined, *(tensors[name] for name in part.names))
        return out
