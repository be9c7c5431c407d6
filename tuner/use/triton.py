"""A model repository for NVIDIA's Triton Inference Server."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from ...export.classifier import INPUTS, OUTPUT

VERSION = "1"
MAX_BATCH_SIZE = 64
QUEUE_DELAY_MICROSECONDS = 2000
"""Longest wait of a request for others in its batch."""
LABELS = "labels.txt"


def write_repository(graph: Path, folder: Path, name: str, labels: Sequence[str]) -> None:
    """Write ``<name>/config.pbtxt``, ``<name>/labels.txt`` and ``<name>/1/model.onnx``.

    Args:
        graph: a baked ONNX file, which is linked or, failing that, copied.
        folder: the repository.
        name: the model's name on the server.
        labels: the classes, in the order of the logits.
    """
    version = folder / name / VERSION
    version.mkdir(parents=True)
    for source in graph.parent.glob(f"{graph.name}*"):
        try:
            os.link(source, version / source.name)
        except OSError:
            shutil.copy2(source, version / source.name)
    (version.parent / LABELS).write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
    (version.parent / "config.pbtxt").write_text(config_of(name, len(labels)), encoding="utf-8")


def config_of(name: str, n_classes: int) -> str:
    """Return the server's configuration of a baked file; Triton does not list the first axis, the batch."""
    inputs = ",\n".join(f"  {{ name: {json.dumps(tensor)}, data_type: TYPE_INT64, dims: [ -1 ] }}" for tensor in INPUTS)
    output = f"name: {json.dumps(OUTPUT)}, data_type: TYPE_FP32, dims: [ {n_classes} ]"
    return f"""name: {json.dumps(name, ensure_ascii=False)}
backend: "onnxruntime"
max_batch_size: {MAX_BATCH_SIZE}
input [
{inputs}
]
output [
  {{ {output}, label_filename: "{LABELS}" }}
]
dynamic_batching {{ max_queue_delay_microseconds: {QUEUE_DELAY_MICROSECONDS} }}
"""
