"""PyTorch as a strong user would run it: population batches, SDPA, the device's best dtype, compiled if that pays."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..attention_calls import attention_calls
from ..record import say
from ..workload import Workload
from .batched import Batched
from .stock import FullHead, PromptedEncoder

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TorchBest(Batched):
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
        self.compiled: bool | None = None
        """Whether the compiled model runs; None until that is known, which wants a quiet machine."""
        self.batch = self._best_batch()
        self._compile()

    def answer(self, prompts: Tensor, layer: int) -> Tensor:
        """Answer the population; the first time, see whether compiling has paid."""
        if self.compiled is None:
            self.compiled = self._compiled_is_faster()
        return super().answer(prompts, layer)

    def attention_kernel(self) -> str:
        """What SDPA chose, with the batch size and whether the model is compiled."""
        kept, self.run = self.run, self.encoder  # a compiled model calls the same kernels where nobody sees it
        found = attention_calls(lambda: self._forward(self.committed[:1], 0))
        self.run = kept
        return f"{found} ({self.batch} candidates at once, {'compiled' if self.compiled else 'not compiled'})"

    def _compile(self) -> None:
        """Compile for the batch size found; what cannot be compiled runs as it is."""
        self.run = torch.compile(self.encoder, dynamic=False)
        try:
            self._seconds(self.batch)
        except Exception as error:  # noqa: BLE001  the compiler raises what its many parts raise
            say(f"torch-best-{self.precision}: not compiled, as that fails ({type(error).__name__}: {error})")
            self.run, self.compiled = self.encoder, False

    def _compiled_is_faster(self) -> bool:
        """Keep the compiled model if it is faster."""
        compiled, seconds = self.run, self._seconds(self.batch)
        self.run = self.encoder
        if self._seconds(self.batch) <= seconds:
            return False
        self.run = compiled
        return True

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
