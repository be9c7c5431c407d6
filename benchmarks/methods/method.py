"""A method, its input (a case) and its outcome."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bbt_fast.benchmarks.harness.record import usual_device
from bbt_fast.export.examples import Examples
from bbt_fast.tuner.artifacts.economics import MIB, Memory, forget_peak, held_bytes
from bbt_fast.tuner.data.encoding import Encoded, TextEncoder
from bbt_fast.tuner.data.splits import Row, Splits
from bbt_fast.tuner.input.options import Options
from bbt_fast.tuner.run.setup import Setup
from bbt_fast.tuner.run.single import Parts
from bbt_fast.tuner.search.losses import cross_entropy_loss
from bbt_fast.tuner.search.metrics import METRICS
from bbt_fast.tuner.search.objective import Score, Yardstick
from bbt_fast.tuner.tasks.task import load_task

Setting = Mapping[str, Any]
"""A method's hyper-parameters by name."""
Place = Literal["user", "server", "both"]
"""Who runs the model: the user, with gradients; a server; or a server, while the user trains on its answers."""


class Case:
    """One seed's data and a fresh model, for one setting of one method.

    All methods get the same splits, template and label words, and texts of the same maximal length, which leaves room
    for a prompt of ``n_prompt_tokens``.
    """

    def __init__(self, options: Options, setting: Setting, max_epochs: int | None = None) -> None:
        """Take resolved options.

        Args:
            options: of one seed.
            setting: the method's hyper-parameters.
            max_epochs: an upper limit for the setting's epochs.
        """
        self.options = options
        self.setting = dict(setting)
        if max_epochs is not None and "epochs" in self.setting:
            self.setting["epochs"] = min(max_epochs, self.setting["epochs"])
        self.task = load_task(options.task_name)
        self._setup = Setup(options, self.task)
        self._plain = Setup(options.changed(cat_or_add="cat", init_text=None, init_from=None), self.task)

    @cached_property
    def splits(self) -> Splits:
        """The seed's examples."""
        return self._setup.splits(self.options.seed)

    @property
    def encoder(self) -> TextEncoder:
        """The encoder of texts without placeholders."""
        return self._plain.encoder

    @cached_property
    def parts(self) -> Parts:
        """The examples without placeholders."""
        return self._plain.encode(self.splits)

    @cached_property
    def prompted(self) -> Parts:
        """The examples for a soft prompt: in add mode with its placeholders."""
        return self._setup.encode(self.splits)

    @cached_property
    def device(self) -> torch.device:
        """The device of the model."""
        return torch.device(usual_device() if self.options.device == "auto" else self.options.device)

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model in fp32, in evaluation mode, frozen."""
        model: Any = self._setup.model
        model.config.use_cache = False
        moved: PreTrainedModel = model.to(self.device)
        return moved

    def labels(self, part: str) -> Tensor:
        """Return the classes of a part, [N]."""
        return torch.tensor([row.label for row in self.rows(part)])

    def examples(self, part: str, prompted: bool = False) -> Examples:
        """Return the examples of ``train``, ``dev`` or ``test`` without placeholders, or for a soft prompt."""
        encoded: Encoded = getattr(self.prompted if prompted else self.parts, part)
        return encoded.examples

    def rows(self, part: str) -> list[Row]:
        """Return the rows of ``train``, ``dev`` or ``test``."""
        rows: list[Row] = getattr(self.splits, part)
        return rows

    def score(self, logits: Tensor, part: str) -> Score:
        """Return the task's metric and the cross entropy of logits [N, C].

        Raises:
            NumericsError: if the loss is NaN or infinite.
        """
        yardstick = Yardstick(cross_entropy_loss, METRICS[self.task.metric])
        loss, metric = yardstick(logits[None].float().cpu(), self.labels(part))
        return Score(float(metric[0]), float(loss[0]))


@dataclass(frozen=True)
class Traffic:
    """The traffic of tuning if the model is on another machine; docs/runs.md explains it."""

    queries: int = 0
    """Calls; each is answered on all training examples."""
    up_bytes: int | None = None
    """Per query; None where there is none."""
    down_bytes: int | None = None


@dataclass(frozen=True)
class Fitted:
    """A method after its training."""

    answer: Callable[[str], Tensor]
    """From ``dev`` or ``test`` to scores of the classes, [N, C]; the class with the highest is the answer."""
    place: Place
    user_holds: tuple[Any, ...] = ()
    """The objects that a user beside a server holds in memory."""
    traffic: Traffic = Traffic()
    notes: Mapping[str, Any] = field(default_factory=dict)
    """Other values for the record: epochs, trained parameters, demonstrations."""


@dataclass(frozen=True)
class Outcome:
    """The result of a method with one seed."""

    dev: float
    """The metric on the development set."""
    dev_loss: float | None
    """The cross entropy there; None if another loss was minimised."""
    test: float | None
    """The metric on the test set; None if it was not read."""
    seconds: float
    """Of tuning only, without loading, the choice of hyper-parameters, and the test."""
    user_mib: float | None
    """Peak memory of the user; None if unknown."""
    server_mib: float | None
    """Peak memory of the server; None without a server."""
    traffic: Traffic
    notes: Mapping[str, Any]


@dataclass(frozen=True)
class Method:
    """A row of the table."""

    run: Callable[[Case, bool], Outcome]
    """From a case, and whether to test, to an outcome."""
    grid: tuple[Setting, ...]
    """The settings; if there are several, the development set of the first seed selects one."""


def own_peak(device: torch.device) -> float | None:
    """Return the peak MiB of a GPU that PyTorch reserved in this process; None on a CPU, or if it reserved none.

    Unlike the memory in use on the device, this does not count other processes.
    """
    if device.type != "cuda":
        return None
    return torch.cuda.max_memory_reserved(device) / MIB or None


def fitted_by(fit: Callable[[Case], Fitted]) -> Callable[[Case, bool], Outcome]:
    """Return the run of a method from its training function: timed, measured, and tested once at the end."""

    def run(case: Case, test: bool) -> Outcome:
        case.model, case.parts, case.prompted  # noqa: B018 - loaded before the clock starts
        gc.collect()
        forget_peak()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(case.options.seed)
            began = time.perf_counter()
            fitted = fit(case)
            seconds = time.perf_counter() - began
            memory = Memory.of(held_bytes(*fitted.user_holds), 0, case.device)
            peak = own_peak(case.device) or memory.server
            dev = case.score(fitted.answer("dev"), "dev")
            tested = case.score(fitted.answer("test"), "test").metric if test else None
        own = memory.user
        user, server = {"user": (peak, None), "server": (0.0, peak), "both": (own, peak)}[fitted.place]
        return Outcome(dev.metric, dev.loss, tested, seconds, user, server, fitted.traffic, fitted.notes)

    return run
