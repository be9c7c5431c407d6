"""The contenders by name."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Callable, Sequence
from functools import partial

from transformers import PreTrainedModel

from bbt_fast.engine import Savings
from bbt_fast.engine.cpu import bf16_fault
from bbt_fast.export.errors import UsageError

from ..workload import Workload
from .base import Contender
from .fast import Fast
from .original import Original, OriginalParallel
from .ort_recipe import OrtRecipe
from .torch_best import TorchBest

Make = Callable[[Workload, PreTrainedModel], Contender]
WITH, WITHOUT = "-with-", "-without-"

BASELINES: dict[str, Make] = {
    "original": Original,
    "original-parallel": OriginalParallel,
    **{f"torch-best-{precision}": partial(TorchBest, precision=precision) for precision in ("fp32", "bf16", "fp16")},
    "ort-recipe": OrtRecipe,
}
ENGINES: dict[str, tuple[str, str]] = {
    f"bbt-fast-{engine}-{precision}": (engine, precision)
    for engine, precisions in {
        "torch": ("fp32", "bf16", "fp16", "fp16-fast", "fp8"),
        "ort": ("fp32", "fp16", "fp16-fast"),
        "openvino": ("fp32", "bf16"),
        "trt": ("fp16",),
    }.items()
    for precision in precisions
}


def parts(name: str) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Return a contender's name without its savings, the savings after "-with-", and those after "-without-"."""
    base, _, off = name.partition(WITHOUT)
    base, _, on = base.partition(WITH)
    include, ablate = (tuple(filter(None, names.split("+"))) for names in (on, off))
    return base, include, ablate


def contender(name: str) -> Make:
    """Return the function that loads a contender.

    "bbt-fast-ort-fp32-without-buckets+reuse" switches savings off. "bbt-fast-ort-fp32-with-packing" switches a saving
    on that does not pay on the device. "-with-..." comes before "-without-...".

    Raises:
        UsageError: if there is no such contender or saving.
    """
    if name in BASELINES:
        return BASELINES[name]
    base, include, ablate = parts(name)
    try:
        engine, precision = ENGINES[base]
        Savings.on("cpu", ablate, include)
    except (KeyError, UsageError) as error:
        raise UsageError(
            f"there is no contender {name!r}; these are: {', '.join([*BASELINES, *ENGINES])}. The last {len(ENGINES)} "
            f"may end in {WITH}SAVING[+SAVING] or {WITHOUT}SAVING[+SAVING]."
        ) from error
    return partial(Fast, engine=engine, precision=precision, ablate=ablate, include=include)


def known(name: str) -> str:
    """Return a contender's name.

    Raises:
        ArgumentTypeError: if there is no such contender.
    """
    try:
        contender(name)
    except UsageError as error:
        raise ArgumentTypeError(str(error)) from error
    return name


def usual(device: str, ablate: Sequence[str] = (), ablated: str = "") -> list[str]:
    """Return the contenders of a full comparison on a device.

    Args:
        device: "cpu" or "cuda".
        ablate: adds a contender for each of these savings, without it.
        ablated: the engine and precision of the added contenders, such as "ort-fp32".
    """
    if device == "cuda":
        best, engines = ["fp16"], ["torch-fp16", "ort-fp16", "trt-fp16"]
    else:
        best, engines = ["fp32"], ["torch-fp32", "ort-fp32", "openvino-fp32"]
        if bf16_fault() is None:
            best, engines = ["fp32", "bf16"], [*engines, "torch-bf16", "openvino-bf16"]
    return [
        "original",
        "original-parallel",
        *(f"torch-best-{precision}" for precision in best),
        "ort-recipe",
        *(f"bbt-fast-{engine}" for engine in engines),
        *(f"bbt-fast-{ablated}{WITHOUT}{saving}" for saving in ablate),
    ]
