"""The ONNX files of a stage chain, built once and kept: what ONNX Runtime, OpenVINO and TensorRT start from."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from tqdm import tqdm

from ..export.cache import entry
from ..export.graphs import OPSET, Source, onnx_from_stage, save_graph
from ..export.model import Encoded, StagedModel

SHAPING = ("bbt-fast", "torch", "transformers", "onnx", "onnxscript", "onnx-ir")
"""The packages whose version shapes a graph."""


@dataclass(frozen=True)
class OnnxFiles:
    """A folder with one ONNX file per stage."""

    folder: Path
    n_stages: int

    def path(self, stage: int) -> Path:
        """Return a stage's file."""
        return self.folder / _name(stage)

    def parity_record(self, runtime: str) -> Path:
        """Return the file that keeps the parity gate's figures for these files on a runtime."""
        return self.folder / f"parity-{runtime}.json"


def onnx_files(staged: StagedModel, encoded: Encoded, dtype: torch.dtype) -> OnnxFiles:
    """Return the files for a stage chain, from the cache or built now."""
    key = {
        "model": staged.fingerprint,
        "mode": staged.mode,
        "n_prompt_tokens": staged.n_prompt_tokens,
        "cuts": staged.cuts,
        "answer_only": staged.answer_only,
        "tensors": sorted(encoded.tensors),
        "dtype": str(dtype),
        "opset": OPSET,
        "versions": {name: version(name) for name in SHAPING},
    }

    def build(folder: Path) -> None:
        title = f"exporting {staged.model.config.model_type} ({staged.mode}, {staged.cuts})"
        for stage in tqdm(range(staged.n_stages), desc=title, unit="graph", disable=None, leave=False):
            save_graph(onnx_from_stage(_source(staged, encoded, dtype, stage)), folder / _name(stage))

    return OnnxFiles(entry(key, build), staged.n_stages)


def _source(staged: StagedModel, encoded: Encoded, dtype: torch.dtype, stage: int) -> Source:
    """Return what to trace a stage with: two candidates, and at least two examples."""
    part = encoded.stages[stage]
    examples, text = encoded.hidden.shape[1:3]
    repeats = 2 if examples == 1 else 1
    hidden = torch.zeros(2, examples * repeats, staged.join(0).length(text), staged.hidden_size)
    tensors = []
    for name in part.names:
        tensor = encoded.tensors[name].cpu()
        tensors.append(torch.cat([tensor] * repeats) if part.axes[name][0] == "examples" else tensor)
    return Source(part, staged.join(stage), dtype, hidden, tuple(tensors))


def _name(stage: int) -> str:
    return f"stage_{stage:02d}.onnx"
