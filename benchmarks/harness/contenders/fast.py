"""bbt-fast's engines, with all savings or without some."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor
from transformers import PreTrainedModel

from bbt_fast.engine import Savings, load_engine
from bbt_fast.tuner.run.setup import CUTS

from ..kernels import KERNELS
from ..workload import Workload
from .base import Contender

LIBRARIES = {"ort": "onnxruntime", "openvino": "openvino"}
"""The library of an engine's matrix product, if not PyTorch; TensorRT offers no single product."""


class Fast(Contender):
    """An engine of bbt-fast in one precision."""

    overlaps: ClassVar[bool] = True

    def __init__(
        self,
        workload: Workload,
        model: PreTrainedModel,
        engine: str,
        precision: str,
        ablate: Sequence[str] = (),
        include: Sequence[str] = (),
    ) -> None:
        """Load the engine, parity gate included, and encode the texts."""
        super().__init__(workload, model)
        self.precision, self.savings = precision, Savings.on(self.device.type, ablate, include)
        self.library = LIBRARIES.get(engine, "torch")  # type: ignore[misc]
        self.engine = load_engine(
            engine,
            model,
            n_prompt_tokens=workload.n_prompt_tokens,
            cuts=CUTS[workload.algorithm],
            precision=precision,
            device=workload.device,
            ablate=ablate,
            include=include,
        )
        self.session = self.engine.open(workload.examples(model))

    @property
    def export_seconds(self) -> float:
        """The time of export, compilation and the parity gate."""
        return self.engine.export_seconds

    @property
    def gate(self) -> dict[str, float]:
        """The figures of the engine's gate on a random population."""
        return self.engine.parity

    def answer(self, prompts: Tensor, layer: int) -> Tensor:
        """Answer the whole population."""
        return self.session.evaluate(prompts, layer)

    def commit(self, prompt: Tensor, layer: int) -> None:
        """Commit a layer's prompt."""
        self.session.commit(prompt, layer)

    def attention_kernel(self) -> str:
        """Name the kernel that the engine's runtime selected."""
        return KERNELS[self.engine.name](self.engine, self.session)
