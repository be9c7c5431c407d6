"""PyTorch as an expert would run it: little padding, SDPA or varlen attention, compiled if that pays."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..attention_calls import attention_calls
from ..record import say
from ..workload import Workload
from .batched import Batched
from .layouts import InARow, Padded, layouts

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MODES: dict[str, tuple[str, ...]] = {"cpu": ("default",), "cuda": ("default", "reduce-overhead")}
"""The modes of compilation, by device type; the second one records CUDA graphs."""


class TorchBest(Batched):
    """The stock model on whole populations, with the fastest layout of texts, batch size and compilation."""

    def __init__(self, workload: Workload, model: PreTrainedModel, precision: str) -> None:
        """Put the model on the device, find the fastest layout and batch size, and compile for them."""
        super().__init__(workload, model)
        self.precision, dtype = precision, DTYPES[precision]
        model.to(self.device, dtype)  # type: ignore[arg-type]
        self.committed = self.committed.to(dtype)
        self.layout = self._best_layout(layouts(model, self.deep, self.examples, workload.n_prompt_tokens))
        self.compiled: dict[str, Any] = {}
        """The layout by mode; the first answer selects the fastest, as timings during the loading are unreliable."""
        self._compile()

    @property
    def mode(self) -> str:
        """The mode in which the layout runs."""
        return next(name for name, run in self.compiled.items() if run is self.run)

    def answer(self, prompts: Tensor, layer: int) -> Tensor:
        """Answer the population; the first call selects the fastest mode."""
        if len(self.compiled) > 1:
            seconds = {name: self._timed(run) for name, run in self.compiled.items()}
            name = min(seconds, key=lambda name: seconds[name])
            self.run, self.compiled = self.compiled[name], {name: self.compiled[name]}
        return super().answer(prompts, layer)

    def attention_kernel(self) -> str:
        """Name the kernels, the layout, the batch size and the mode."""
        kept, self.run = self.run, self.layout  # a compiled model calls the same kernels, but hides them
        found = attention_calls(lambda: self._forward(self.committed[:1], 0))
        self.run = kept
        return f"{found} ({self.layout.name}, {self.batch} candidates at once, {self.mode})"

    def _best_layout(self, found: list[Padded | InARow]) -> Padded | InARow:
        """Return the fastest layout, set its attention, and keep its fastest batch size."""
        tried: list[tuple[float, int, Padded | InARow]] = []
        for layout in found:
            self.model.set_attn_implementation(layout.attention)
            self.run = layout
            size = self._best_batch()
            tried.append((self._seconds(size) / size, size, layout))
        _, self.batch, best = min(tried, key=lambda one: one[0])
        self.model.set_attn_implementation(best.attention)
        self.run = best
        return best

    def _compile(self) -> None:
        """Compile the layout in each mode; skip a mode that fails."""
        self.compiled = {"not compiled": self.layout}
        for mode in MODES[self.device.type]:
            self.compiled[mode] = torch.compile(self.layout, dynamic=False, mode=mode)
            try:
                self._timed(self.compiled[mode])
            except Exception as error:  # noqa: BLE001  the compiler raises errors of many kinds
                say(f"torch-best-{self.precision}: mode {mode} fails ({type(error).__name__}: {error})")
                del self.compiled[mode]
        self.run = self.layout

    def _timed(self, run: Any) -> float:
        """Time a form of the layout."""
        self.run = run
        return self._seconds(self.batch)

    def _forward(self, prompts: Tensor, layer: int) -> Tensor:
        with torch.inference_mode():
            full = self.all_prompts(prompts, layer)
            if self.device.type == "cuda":
                torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            logits: Tensor = self.run(full)
            return logits.clone()  # a CUDA graph overwrites this with its next answer
