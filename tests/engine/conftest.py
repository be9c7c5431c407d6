"""A double of a runner."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import Tensor

from bbt_fast.engine.buckets import Bucket
from bbt_fast.engine.prefix import SharedPrefix
from bbt_fast.engine.runner import Runner


class Double(Runner):
    """Runs stages by a function."""

    def __init__(self, run: Callable[..., Tensor]) -> None:
        self._run = run

    def __call__(self, stage: int, hidden: Tensor, prompt: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        return self._run(stage, hidden, prompt, tensors)


@pytest.fixture
def run_by(monkeypatch: pytest.MonkeyPatch) -> Callable[[Bucket | SharedPrefix, Callable[..., Tensor]], None]:
    """Let a bucket or a shared prefix run its stages by a function."""
    return lambda part, run: monkeypatch.setattr(part, "run" if isinstance(part, Bucket) else "_run", Double(run))
