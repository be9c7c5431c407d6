"""The ONNX files of a stage chain, from the graph cache: the input of ONNX Runtime, OpenVINO and TensorRT."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from google.protobuf.message import DecodeError
from tqdm import tqdm

from ..export.cache import code_digest, entry
from ..export.errors import ArtifactError
from ..export.graphs import OPSET, Source, onnx_from_stage, save_graph
from ..export.model import Encoded, StagedModel
from ..export.traces import shaping_versions
from ..export.weights import check_weights

METADATA = "bbt_fast"
"""The metadata entry of a graph file with its cache key."""


@dataclass(frozen=True)
class OnnxFiles:
    """One ONNX file per stage."""

    paths: tuple[Path, ...]
    kept: bool
    """Whether they are in the cache, so that parity figures can be saved beside them."""

    def parity_record(self, runtime: str) -> Path | None:
        """Return the file for the parity figures of these files on a runtime; None outside the cache."""
        return self.paths[0].with_name(f"parity-{runtime}.json") if self.kept else None


def onnx_files(
    staged: StagedModel, encoded: Encoded, dtype: torch.dtype, given: Path | None = None, *, fused: bool = False
) -> OnnxFiles:
    """Return the files for a stage chain: the given ones, or else from the cache, where they are built if missing.

    Args:
        staged: the model.
        encoded: an example of the stages' inputs.
        dtype: the graphs' compute dtype.
        given: a file (cuts="input") or a folder of stage files (cuts="layers").
        fused: whether to fuse standard operators into operators of ONNX Runtime.

    Raises:
        ArtifactError: if the given files are missing or do not fit.
    """
    key = _key(staged, encoded, dtype) | {"fused": fused}
    if given is not None:
        return OnnxFiles(_given_paths(given, staged, key), kept=False)
    kept = key | {"exporter": code_digest(Path(__file__))}
    folder = entry(kept, lambda folder: _build(staged, encoded, dtype, _paths(folder, staged), key))
    return OnnxFiles(_paths(folder, staged), kept=True)


def _build(
    staged: StagedModel, encoded: Encoded, dtype: torch.dtype, paths: tuple[Path, ...], key: dict[str, Any]
) -> None:
    title = f"exporting {staged.model.config.model_type} ({staged.mode}, {staged.cuts})"
    for stage, path in enumerate(tqdm(paths, desc=title, unit="graph", disable=None, leave=False)):
        graph = onnx_from_stage(_source(encoded, dtype, stage, fused=key["fused"]))
        graph.metadata_props[METADATA] = json.dumps(key)
        save_graph(graph, path)


def _key(staged: StagedModel, encoded: Encoded, dtype: torch.dtype) -> dict[str, Any]:
    """Return everything that determines the graphs."""
    return {
        "model": staged.fingerprint,
        "mode": staged.mode,
        "n_prompt_tokens": staged.n_prompt_tokens,
        "cuts": staged.cuts,
        "answer_only": staged.answer_only,
        "part": type(encoded.stages[0]).__name__,
        "kernel": None if encoded.stages[0].packing is None else encoded.stages[0].packing.kernel,
        "tensors": sorted(encoded.tensors),
        "precision": str(dtype).removeprefix("torch."),
        "opset": OPSET,
        "versions": shaping_versions(),
    }


def _given_paths(given: Path, staged: StagedModel, key: dict[str, Any]) -> tuple[Path, ...]:
    """Return a user's files after comparing their metadata with the key."""
    paths = (given,) if staged.cuts == "input" else _paths(given, staged)
    for path in paths:
        if not path.is_file():
            what = "a file" if staged.cuts == "input" else f"a folder with {len(paths)} files {path.name}, ..."
            raise ArtifactError(
                f"--onnx_model_path {given} must be {what}, but {path} is missing. Write it with "
                f"`python scripts/export_and_optimize.py{'' if staged.cuts == 'input' else ' --deep'}`."
            )
        try:
            graph = ir.load(path)
            built_for = dict(json.loads(graph.metadata_props[METADATA]))
            check_weights(graph, path)
        except (OSError, KeyError, ValueError, TypeError, RecursionError, DecodeError) as error:
            raise ArtifactError(
                f"{path} is not a graph that scripts/export_and_optimize.py wrote ({type(error).__name__}). Export it "
                "again, or omit --onnx_model_path."
            ) from error
        for name, wanted in key.items():
            if name not in ("versions", "opset") and built_for.get(name) != wanted:
                raise ArtifactError(
                    f"{path} was built for {name} {built_for.get(name)}, but this run has {wanted}. Export it again "
                    "with scripts/export_and_optimize.py and this run's options, or omit --onnx_model_path."
                )
    return paths


def _paths(folder: Path, staged: StagedModel) -> tuple[Path, ...]:
    return tuple(folder / f"stage_{stage:02d}.onnx" for stage in range(staged.n_stages))


def _source(encoded: Encoded, dtype: torch.dtype, stage: int, *, fused: bool) -> Source:
    """Return the inputs of a stage's export."""
    part = encoded.stages[stage]
    examples, _, hidden_size = encoded.hidden.shape[1:]
    width = part.prompt_width(hidden_size)
    joined = [torch.empty(2, examples, encoded.joined_length, hidden_size, device="meta")]
    if part.join.kind == "follow":
        joined.append(torch.empty(2, part.join.n_prompt_tokens, width, device="meta"))
    given = encoded.tensors_for(2)
    return Source(part, dtype, tuple(joined), width, tuple(given[name] for name in part.names), fused)
