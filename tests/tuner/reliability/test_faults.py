"""An engine that fails in the middle of a run leaves the journal whole, and the run continues from there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bbt_fast import tune
from bbt_fast.engine.session import Session
from bbt_fast.export.errors import DeviceError, NumericsError

FAULTY = 7
"""The population whose evaluation fails."""
POPSIZE = 4


def nan(self: Session, prompts: Tensor, layer: int, original: Callable[..., Tensor]) -> Tensor:
    """Evaluate to NaN."""
    return original(self, torch.full_like(prompts, float("nan")), layer)


def broken(self: Session, prompts: Tensor, layer: int, original: Callable[..., Tensor]) -> Tensor:
    """Fail as a broken CUDA device does."""
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


@pytest.fixture(scope="module", params=["bbt", "bbtv2"])
def whole(
    request: pytest.FixtureRequest, options: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path]:
    """The options of a run, and the folder of one that nothing disturbed."""
    asked, folder = options(algorithm=request.param), tmp_path_factory.mktemp("whole") / "run"
    tune(**asked, output_dir=str(folder))
    return asked, folder


@pytest.mark.parametrize(
    ("fault", "times", "error", "message"),
    [
        (nan, 1, None, ""),
        (nan, 2, NumericsError, "returned NaN or infinity. Try a smaller"),
        (broken, 2, DeviceError, r"illegal memory access.*run the same command again to resume"),
    ],
)
def test_a_fault_costs_a_try_or_the_generation_and_nothing_else(
    fault: Callable[..., Tensor],
    times: int,
    error: type[Exception] | None,
    message: str,
    whole: tuple[dict[str, Any], Path],
    figures: Callable[[Path], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked, undisturbed = whole
    original, calls, left = Session._logits, [0], [times]

    def faulty(self: Session, prompts: Tensor, layer: int) -> Tensor:
        calls[0] += len(prompts) == POPSIZE
        if calls[0] >= FAULTY and left[0]:
            left[0] -= 1
            return fault(self, prompts, layer, original)
        return original(self, prompts, layer)

    monkeypatch.setattr(Session, "_logits", faulty)
    if error:
        with pytest.raises(error, match=message):
            tune(**asked, output_dir=str(tmp_path / "run"))
        records = [json.loads(line) for line in (tmp_path / "run" / "journal.jsonl").read_text().splitlines()]
        assert sum(record["kind"] == "generation" for record in records) == FAULTY - 1
        tune(resume=str(tmp_path / "run"))
    else:
        tune(**asked, output_dir=str(tmp_path / "run"))
        assert "trying once more with fewer candidates at a time" in caplog.text
    assert figures(tmp_path / "run")[0]["tuned"] == figures(undisturbed)[0]["tuned"]
    if error:  # with smaller chunks the last digits of a loss may differ
        assert figures(tmp_path / "run") == figures(undisturbed)
