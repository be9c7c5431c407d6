"""Cached graphs are found again by everything that determines them, and by nothing else."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import PreTrainedModel

from bbt_fast.engine import onnx_files as module
from bbt_fast.engine.onnx_files import onnx_files
from bbt_fast.export import traces
from bbt_fast.export.model import Encoded, StagedModel
from bbt_fast.export.packing import Packing
from bbt_fast.export.parity import probe_examples
from bbt_fast.export.stages import Stage


class Asked(NamedTuple):
    """The arguments of onnx_files()."""

    staged: StagedModel
    encoded: Encoded
    dtype: torch.dtype = torch.float32
    given: None = None
    fused: bool = False

    def entry(self) -> Path:
        """The cache entry of these graphs."""
        *rest, fused = self
        return onnx_files(*rest, fused=fused).paths[0].parent

    def staged_with(self, **changes: Any) -> Asked:
        """The same of a model with other attributes."""
        staged = copy(self.staged)
        vars(staged).update(changes)
        return self._replace(staged=staged)

    def stage_with(self, kind: type[Stage] = Stage, **changes: Any) -> Asked:
        """The same with other attributes of the stages, or another class."""
        stage = copy(self.encoded.stages[0])
        stage.__class__ = kind
        vars(stage).update(changes)
        return self._replace(encoded=replace(self.encoded, stages=(stage,)))


@pytest.fixture
def asked(roberta: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asked:
    """A tiny model's graphs, in an empty cache where they are named but not built."""
    monkeypatch.setenv("BBT_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "_build", lambda staged, encoded, dtype, paths, key: paths[0].touch())
    staged = StagedModel(roberta, "add", 5, "input")
    return Asked(staged, staged.encode(probe_examples(staged)))


class OtherStage(Stage):
    """A stage that computes something else from the same tensors."""


def other_version(asked: Asked, patch: pytest.MonkeyPatch, package: str) -> Asked:
    """The same with another version of a package."""
    version = traces.version
    patch.setattr(traces, "version", lambda name: "0" if name == package else version(name))
    return asked


def other_opset(asked: Asked, patch: pytest.MonkeyPatch) -> Asked:
    """The same in another opset."""
    patch.setattr(module, "OPSET", 18)
    return asked


def other_exporter(asked: Asked, patch: pytest.MonkeyPatch) -> Asked:
    """The same by edited code."""
    edited = Path(asked.entry().parent, "onnx_files.py")
    edited.write_text(Path(module.__file__).read_text() + "edited = True\n")
    patch.setattr(module, "__file__", str(edited))
    return asked


CHANGES: dict[str, Callable[[Asked, pytest.MonkeyPatch], Asked]] = {
    "model": lambda asked, patch: asked.staged_with(fingerprint="other"),
    "mode": lambda asked, patch: asked.staged_with(mode="cat"),
    "n": lambda asked, patch: asked.staged_with(n_prompt_tokens=6),
    "cuts": lambda asked, patch: asked.staged_with(cuts="layers"),
    "answer_only": lambda asked, patch: asked.staged_with(answer_only=False),
    "part": lambda asked, patch: asked.stage_with(OtherStage),
    "packed": lambda asked, patch: asked.stage_with(packing=Packing("padded", {}, {}, causal=False)),
    "tensors": lambda asked, patch: asked._replace(encoded=replace(asked.encoded, tensors={})),
    "dtype": lambda asked, patch: asked._replace(dtype=torch.float16),
    "fused": lambda asked, patch: asked._replace(fused=True),
    "opset": other_opset,
    "exporter": other_exporter,
    **{
        f"version of {package}": lambda asked, patch, package=package: other_version(asked, patch, package)
        for package in ("bbt-fast", "torch", "transformers", "onnx", "onnxscript", "onnx-ir")
    },
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_graphs_of_something_else_are_other_graphs(
    change: Callable[[Asked, pytest.MonkeyPatch], Asked], asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = asked.entry()
    assert change(asked, monkeypatch).entry() != first


def test_graphs_of_the_same_are_found_again(asked: Asked, roberta: PreTrainedModel) -> None:
    again = StagedModel(roberta, "add", 5, "input")
    assert Asked(again, again.encode(probe_examples(again))).entry() == asked.entry()


def test_graphs_of_another_kernel_for_packed_texts_are_other_graphs(asked: Asked) -> None:
    kernels = ("padded", "varlen", "contrib")
    assert len({asked.stage_with(packing=Packing(name, {}, {}, causal=False)).entry() for name in kernels}) == 3
