"""The code of a contender's process: the commands and their answers."""

from __future__ import annotations

import logging
import os
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from transformers import PreTrainedModel

from bbt_fast.export.errors import BbtFastError, DeviceError, MissingExtraError, ParityError, UsageError
from bbt_fast.export.families import family_of
from bbt_fast.export.parity import Parity

from .breakdown import breakdown
from .contenders import contender
from .contenders.base import Contender
from .contenders.original import Reference
from .flops import Sizes, round_flops
from .matmul import MatmulRate
from .memory import PeakMemory
from .rounds import Rounds
from .shapes import make_model
from .workload import SIGMA_ALPHA, Workload

REFERENCE = "reference"
CHECK_SEED = 1234
STATUS = {
    ParityError: "wrong",
    MissingExtraError: "unavailable",
    UsageError: "unavailable",
    DeviceError: "unavailable",
}


class WorkerError(BbtFastError):
    """A contender cannot run: its status ("wrong", "unavailable", "skipped" or "failed") and the reason."""

    def __init__(self, status: str, reason: str) -> None:
        """Take status and reason."""
        super().__init__(reason)
        self.status, self.reason = status, reason


class Served:
    """The child's end of a contender: its commands."""

    def __init__(self, name: str, workload: Workload, model: Callable[[], PreTrainedModel] | None = None) -> None:
        """Take the contender's name and a function that returns its model; by default a model of its own."""
        self.name, self.workload = name, workload
        self.model = model or partial(make_model, workload.model)
        self.memory = PeakMemory(torch.device(workload.device))

    def load(self) -> dict[str, Any]:
        """Load the contender and describe it."""
        make = Reference if self.name == REFERENCE else contender(self.name)
        model = self.model()
        began = time.perf_counter()
        with patch.object(Parity, "require") if self.workload.refused else nullcontext():
            self.contender: Contender = make(self.workload, model)
        loaded = time.perf_counter() - began
        self.rounds = Rounds(self.contender)
        config = model.config
        self.rate = MatmulRate(
            self.contender.library,
            self.contender.precision,
            self.contender.device,
            config.hidden_size,
            Sizes.of(config, 1).inner,
        )
        self.memory.start()
        layers, workload = self.rounds.oracle.layers, self.workload
        sizes = Sizes.of(config, len(set(workload.labels.tolist())))
        prefix = family_of(config).prompt_start + workload.n_prompt_tokens
        savings = self.contender.savings
        return {
            "generations": len(layers),
            "round_flop": round_flops(sizes, workload.lengths, layers, workload.population, savings, prefix),
            "precision": self.contender.precision,
            "library": self.contender.library,
            "savings": asdict(savings),
            "load_seconds": loaded,
            "export_seconds": self.contender.export_seconds,
            "gate": self.contender.gate,
            "model": {
                "type": config.model_type,
                "layers": config.num_hidden_layers,
                "hidden": config.hidden_size,
                "parameters": sum(p.numel() for p in model.parameters()),
            },
        }

    def check(self) -> list[Any]:
        """Answer a random population at the first and the last tuned layer, with prompts committed at all of them."""
        contender, layers = self.contender, self.rounds.oracle.layers
        generator = torch.Generator().manual_seed(CHECK_SEED)
        dim, size = self.workload.intrinsic_dim, self.workload.population
        sigma, _ = SIGMA_ALPHA[self.workload.algorithm]
        projections = self.rounds.oracle.projections
        prompts = {
            layer: projections[layer](sigma * torch.randn(size, dim, generator=generator).numpy()).to(contender.device)
            for layer in layers
        }
        if len(layers) > 1:
            for layer in layers:
                contender.commit(prompts[layer][0], layer)
        answers = [contender.answer(prompts[layer], layer).cpu().numpy() for layer in sorted({layers[0], layers[-1]})]
        for layer in layers if len(layers) > 1 else ():
            contender.commit(torch.zeros_like(prompts[layer][0]), layer)
        return answers

    def round(self) -> dict[str, float]:
        """Run a timed round."""
        seconds = self.rounds()
        self.memory.sample()
        return seconds

    def matmul(self) -> float:
        """Measure the matrix-product rate, FLOP/s."""
        return self.rate()

    def breakdown(self) -> dict[str, Any]:
        """Profile a generation at the middle one of the tuned layers."""
        layers, workload = self.rounds.oracle.layers, self.workload
        layer = layers[len(layers) // 2]
        candidates = np.random.default_rng(CHECK_SEED).standard_normal((workload.population, workload.intrinsic_dim))
        prompts = self.rounds.oracle.projections[layer](candidates)
        return breakdown(lambda: self.contender.answer(prompts, layer), self.contender.device)

    def finish(self) -> dict[str, Any]:
        """Return the figures that are known only at the end."""
        try:
            kernel = self.contender.attention_kernel()
        except Exception as error:  # noqa: BLE001  a failing profiler does not affect the times
            kernel = f"unknown ({type(error).__name__}: {error})"
        return {"peak_mib": self.memory.mib, "attention_kernel": kernel}


@contextmanager
def prepared(workload: Workload, cache: str | None) -> Iterator[None]:
    """Prepare a contender's process: quiet libraries, its threads, a folder for graphs."""
    warnings.simplefilter("ignore")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else PyTorch's profiler writes to standard error
    for library in ("torch.onnx", "onnxscript", "onnx_ir", "torch._inductor", "torch._dynamo"):
        logging.getLogger(library).setLevel(logging.ERROR)
    if workload.threads:
        torch.set_num_threads(workload.threads)
    with tempfile.TemporaryDirectory(prefix="bbt-fast-benchmark-") as scratch:
        os.environ["BBT_FAST_CACHE"] = cache or scratch
        yield


def obey(served: Served, command: str) -> tuple[bool, Any]:
    """Run a command; return True and its answer, or False with the contender's status and the reason."""
    try:
        return True, getattr(served, command)()
    except Exception as error:  # noqa: BLE001  any error ends only this contender
        status = next((s for kind, s in STATUS.items() if isinstance(error, kind)), "failed")
        if status == "failed":
            traceback.print_exc()
        return False, (status, f"{type(error).__name__}: {error}")
