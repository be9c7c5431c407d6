"""ONNX Runtime with int8 weights by dynamic quantization: fast, and here to be measured as unfaithful."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from onnxruntime.quantization import QuantType, quantize_dynamic

from bbt_fast.engine.onnx_files import OnnxFiles, onnx_files
from bbt_fast.engine.ort import OrtEngine, OrtRunner
from bbt_fast.engine.session import Runner
from bbt_fast.export.model import Encoded


class QuantizedOrtEngine(OrtEngine):
    """The ort engine over the same graphs, weights int8 per channel, activations quantized as they come.

    The gate measures and does not refuse: that is what is to be shown. Attention stays as it is: ONNX Runtime's tool
    would make an invalid node of it.
    """

    def _load(self, encoded: Encoded) -> OrtRunner:
        files = onnx_files(self.staged, encoded, self.dtype)
        logging.getLogger().setLevel(logging.ERROR)  # the tool advises on the root logger
        self._folder = tempfile.TemporaryDirectory(prefix="bbt-fast-int8-")
        paths = tuple(Path(self._folder.name) / path.name for path in files.paths)
        for source, target in zip(files.paths, paths, strict=True):
            quantize_dynamic(
                source,
                target,
                op_types_to_quantize=["MatMul", "Gemm"],
                per_channel=True,
                weight_type=QuantType.QInt8,
                extra_options={"MatMulConstBOnly": True},
            )
        return OrtRunner(OnnxFiles(paths, kept=False), self.staged, encoded, self.device)

    def _gated(self, encoded: Encoded) -> Runner:
        runner = self._load(encoded)
        self.parity = self._measure(runner, encoded).as_dict()
        return runner
