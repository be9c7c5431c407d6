"""The original's ONNX Runtime recipe, corrected: the whole encoder as a graph, and ORT's transformers optimizer."""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..ort_session import ort_session
from ..workload import Workload
from .base import synchronise
from .batched import Batched
from .stock import FullHead, PromptedEncoder

OPSET = 18
"""The newest opset whose attention the optimizer can fuse; from 23 on attention is one node, which it ignores."""
NUMPY = {torch.float32: np.float32, torch.float16: np.float16, torch.int64: np.int64}


class OrtRecipe(Batched):
    """One graph from token ids to hidden states, several candidates per call, and the head in PyTorch."""

    library: ClassVar[str] = "onnxruntime"

    def __init__(self, workload: Workload, model: PreTrainedModel) -> None:
        """Export, optimize and load the graph; fp16 on CUDA, fp32 on the CPU."""
        super().__init__(workload, model)
        self.precision = "fp16" if self.device.type == "cuda" else "fp32"
        dtype = torch.float16 if self.precision == "fp16" else torch.float32
        model.set_attn_implementation("sdpa")
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            path = self._optimized(Path(folder))
            self._spent = time.perf_counter() - began
            self.session = ort_session(str(path), self.device)
        self.committed = self.committed.to(dtype)
        model.to(self.device, dtype)  # type: ignore[arg-type]
        self.head = FullHead(model, self.examples)
        self.batch = self._best_batch()

    @property
    def export_seconds(self) -> float:
        """The time of export and optimization."""
        return self._spent

    def attention_kernel(self) -> str:
        """Name the number of layers whose attention the optimizer fused."""
        fused = f"{self.fused} of {self.model.config.num_hidden_layers} attentions fused by the optimizer"
        return f"{fused} ({self.batch} candidates at once)"

    def _forward(self, prompts: Tensor, layer: int) -> Tensor:
        candidates, count = len(prompts), len(self.examples)
        with torch.inference_mode():
            inputs = {
                "ids": self.examples.input_ids.repeat(candidates, 1),
                "mask": self.examples.attention_mask.repeat(candidates, 1),
                "prompts": self.all_prompts(prompts, layer).repeat_interleave(count, dim=0),
            }
            output = self.committed.new_empty(*inputs["ids"].shape, self.committed.shape[-1])
            binding = self.session.io_binding()
            for name, tensor in inputs.items():
                binding.bind_input(name, *_place(tensor), tuple(tensor.shape), tensor.data_ptr())
            binding.bind_output("hidden", *_place(output), tuple(output.shape), output.data_ptr())
            synchronise(self.device)  # ONNX Runtime's stream does not wait for PyTorch's
            self.session.run_with_iobinding(binding)
            logits: Tensor = self.head(output)
            return logits.reshape(candidates, count, -1)

    def _optimized(self, folder: Path) -> Path:
        """Export the encoder, and run ORT's transformers optimizer on it."""
        from onnxruntime.transformers.fusion_options import FusionOptions
        from onnxruntime.transformers.optimizer import optimize_model

        logging.getLogger("onnxruntime").setLevel(logging.ERROR)
        encoder = PromptedEncoder(self.model, self.deep)
        ids, mask = self.examples.input_ids[:2].cpu(), self.examples.attention_mask[:2].cpu()
        dims = {0: torch.export.Dim("batch", min=2, max=1 << 20)}
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                encoder,
                (ids, mask, self.committed.cpu().repeat(2, 1, 1, 1)),
                folder / "exported.onnx",
                dynamo=True,
                opset_version=OPSET,
                input_names=["ids", "mask", "prompts"],
                output_names=["hidden"],
                dynamic_shapes={"ids": dims, "mask": dims, "prompts": dims},
                verbose=False,
            )
            config = self.model.config
            optimized = optimize_model(
                str(folder / "exported.onnx"),
                model_type="bert",
                num_heads=config.num_attention_heads,
                hidden_size=config.hidden_size,
                optimization_options=FusionOptions("bert"),
                use_gpu=self.device.type == "cuda",
            )
            if self.precision == "fp16":
                optimized.convert_float_to_float16(keep_io_types=False)
        self.fused = optimized.get_fused_operator_statistics().get("Attention", 0)
        optimized.save_model_to_file(str(folder / "optimized.onnx"), use_external_data_format=True)
        return folder / "optimized.onnx"


def _place(tensor: Tensor) -> tuple[str, int, type]:
    return tensor.device.type, tensor.device.index or 0, NUMPY[tensor.dtype]
