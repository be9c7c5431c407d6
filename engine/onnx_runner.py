"""The base class of runners for ONNX files."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path

import torch
from torch import Tensor

from ..export.model import Encoded, StagedModel
from .onnx_files import OnnxFiles
from .runner import Runner


class OnnxRunner(Runner):
    """Runs a stage chain from its files; inputs and outputs are torch tensors, passed by address.

    A subclass loads the files and implements ``_infer``.
    """

    def __init__(self, files: OnnxFiles, staged: StagedModel, encoded: Encoded) -> None:
        """Take the files of a stage chain."""
        self.files = files
        self._staged = staged
        self._stages = encoded.stages

    @property
    def artifacts(self) -> tuple[Path, ...]:
        """The ONNX files, in order."""
        return self.files.paths

    def __call__(self, stage: int, hidden: Tensor, prompt: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        """Run a stage; nothing is copied between host and device."""
        part = self._stages[stage]
        population, examples, length = max(hidden.shape[0], prompt.shape[0]), *hidden.shape[1:3]
        index = part.join.names
        if part.answers:
            shape = len(tensors["answer_position"]), len(tensors["label_rows"])
            output = self._output(stage, hidden, (population, *shape), torch.float32)
        else:
            width = part.output_width(hidden.shape[3])
            length = len(tensors[index[0]]) if index else part.join.length(length)
            output = self._output(stage, hidden, (population, examples, length, width), hidden.dtype)
        inputs = {"hidden": hidden.contiguous(), "prompt": prompt}
        inputs |= {name: tensors[name] for name in (*index, *part.names)}
        self._infer(stage, inputs, output)
        return output

    def _output(self, stage: int, like: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Allocate a stage's output on the device of a tensor."""
        del stage
        return like.new_empty(shape, dtype=dtype)

    @abstractmethod
    def _infer(self, stage: int, inputs: dict[str, Tensor], output: Tensor) -> None:
        """Run one stage's file on contiguous inputs by name, and write its output."""
