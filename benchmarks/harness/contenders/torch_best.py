"""PyTorch as a strong user would run it: population batches, SDPA, the device's best dtype, compiled if that pays."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..attention_calls import attention_calls
from ..workload import Workload
from .base import Contender, synchronise
from .stock import FullHead, PromptedEncoder

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TorchBest(Contender):
    """The stock model, SDPA, whole populations; batch size and ``torch.compile`` are chosen by trying them."""

    def __init__(self, workload: Workload, model: PreTrainedModel, precision: str) -> None:
        """Put the model on the device, find the fastest batch size, and compile for it."""
        super().__init__(workload, model)
        self.precision, dtype = precision, DTYPES[precision]
        model.set_attn_implementation("sdpa")
        model.to(self.device, dtype)  # type: ignore[arg-type]
        self.examples = workload.examples(model).to(self.device)
        deep = workload.algorithm == "bbtv2"
        self.encoder, self.head = PromptedEncoder(model, deep), FullHead(model, self.examples)
        shape = (model.config.num_hidden_layers if deep else 1, workload.n_prompt_tokens, model.config.hidden_size)
        self.committed = torch.zeros(shape, device=self.device, dtype=dtype)
        self.run: Any = self.encoder
        self.batch = self._best_batch()
        self.compiled = self._compiles()

    def commit(self, prompt: Tensor, layer: int) -> None:
        """Keep a layer's prompt for all later forward passes."""
        self.committed[layer] = prompt

    def answer(self, prompts: Tensor, layer: int) -> Tensor:
        """Answer the population in batches of one size; a last one that is smaller is filled up."""
        missing = -len(prompts) % self.batch
        filled = torch.cat([prompts, prompts[:1].expand(missing, -1, -1)]) if missing else prompts
        answers = torch.cat([self._forward(some, layer) for some in torch.split(filled, self.batch)])
        return answers[: len(prompts)]

    def attention_kernel(self) -> str:
        """What SDPA chose, with the batch size and whether the model is compiled."""
        kept, self.run = self.run, self.encoder  # a compiled model calls the same kernels where nobody sees it
        found = attention_calls(lambda: self._forward(self.committed[:1], 0))
        self.run = kept
        return f"{found} ({self.batch} candidates at once, {'compiled' if self.compiled else 'not compiled'})"

    def _best_batch(self) -> int:
        """Return how many candidates to run at once."""
        sizes = sorted({1, min(4, self.workload.population), self.workload.population})
        return min(sizes, key=lambda size: self._seconds(size) / size)

    def _compiles(self) -> bool:
        """Compile for the batch size found, and keep that if it is faster."""
        before = self._seconds(self.batch)
        self.run = torch.compile(self.encoder, dynamic=False)
        if self._seconds(self.batch) < before:
            return True
        self.run = self.encoder
        return False

    def _seconds(self, batch: int) -> float:
        """Time one forward pass of a batch, after a first one."""
        prompts = self.committed[:1].repeat(batch, 1, 1)
        for _ in range(2):
            began = time.perf_counter()
            self._forward(prompts, 0)
            synchronise(self.device)
        return time.perf_counter() - began

    def _forward(self, prompts: Tensor, layer: int) -> Tensor:
        candidates, count = len(prompts), len(self.examples)
        with torch.inference_mode():
            full = self.committed.repeat(candidates, 1, 1, 1)
            full[:, layer] = prompts.to(full.dtype)
            hidden = self.run(
                self.examples.input_ids.repeat(candidates, 1),
                self.examples.attention_mask.repeat(candidates, 1),
                full.repeat_interleave(count, dim=0),
            )
            logits: Tensor = self.head(hidden)
            return logits.reshape(candidates, count, -1)
