"""ONNX Runtime's two kinds of int8 weights, which bbt-fast measures but does not offer."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import onnx
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

from bbt_fast.engine import Savings
from bbt_fast.engine.onnx_files import OnnxFiles, onnx_files
from bbt_fast.engine.ort import OrtEngine, OrtRunner
from bbt_fast.engine.runner import Runner
from bbt_fast.export.graphs import quiet
from bbt_fast.export.model import Encoded, StagedModel


def quantize_all(source: Path, target: Path) -> None:
    """Quantize weights to int8 per channel, and activations dynamically with one scale per tensor.

    Attention and products with a matrix per head stay as they are: ONNX Runtime's tool would write invalid nodes.
    """
    graph = onnx.load(source, load_external_data=False).graph
    stacks = {weight.name for weight in graph.initializer if len(weight.dims) > 2}
    quantize_dynamic(
        source,
        target,
        op_types_to_quantize=["MatMul", "Gemm"],
        nodes_to_exclude=[node.name for node in graph.node if stacks.intersection(node.input)],
        per_channel=True,
        weight_type=QuantType.QInt8,
        extra_options={"MatMulConstBOnly": True},
    )


def quantize_blocks(source: Path, target: Path) -> None:
    """Quantize weights to int8 in blocks of 32, and activations per block of each row."""
    quantizer = MatMulNBitsQuantizer(str(source), bits=8, block_size=32, is_symmetric=True, accuracy_level=4)
    quantizer.process()
    quantizer.model.save_model_to_file(str(target))


WAYS: dict[str, Callable[[Path, Path], None]] = {"int8": quantize_all, "int8blocks": quantize_blocks}
"""By the name that replaces a precision."""


class QuantizedOrtEngine(OrtEngine):
    """The ort engine on the same graphs, quantized. Its gate measures and does not refuse."""

    def __init__(self, staged: StagedModel, way: str) -> None:
        """Take a row of WAYS."""
        super().__init__(staged, "fp32", torch.device("cpu"), Savings())
        self._quantize = WAYS[way]

    def _load(self, encoded: Encoded) -> OrtRunner:
        files = onnx_files(self.staged, encoded, self.dtype)
        # The tools log to the root logger.
        with tempfile.TemporaryDirectory(prefix="bbt-fast-int8-") as folder, quiet():
            paths = tuple(Path(folder) / path.name for path in files.paths)
            for source, target in zip(files.paths, paths, strict=True):
                self._quantize(source, target)
            return OrtRunner(OnnxFiles(paths, kept=False), self.staged, encoded, self.device, self.calls, graphs=False)

    def _gated(self, encoded: Encoded) -> Runner:
        runner = self._load(encoded)
        self.parity = self._measure(runner, encoded).as_dict()
        return runner
