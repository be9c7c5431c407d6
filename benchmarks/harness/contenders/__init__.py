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


def contender(name: str) -> Make:
    """Return what makes a contender.

    "bbt-fast-ort-fp32-without-buckets+reuse" leaves savings out, "bbt-fast-ort-fp32-with-packing" takes one that does
    not pay on the device; "-with-..." stands before "-without-..." if there are both.

    Raises:
        KeyError: if there is none of that name.
        UsageError: if there is no saving of that name.
    """
    if name in BASELINES:
        return BASELINES[name]
    base, _, ablated = name.partition(WITHOUT)
    base, _, included = base.partition(WITH)
    engine, precision = ENGINES[base]
    ablate, include = (tuple(filter(None, names.split("+"))) for names in (ablated, included))
    Savings.on("cpu", ablate, include)
    return partial(Fast, engine=engine, precision=precision, ablate=ablate, include=include)


def known(name: str) -> str:
    """Return a contender's name.

    Raises:
        ArgumentTypeError: if there is none of that name.
    """
    try:
        contender(name)
    except (KeyError, UsageError) as error:
        names = ", ".join([*BASELINES, *ENGINES])
        raise ArgumentTypeError(
            f"there is no contender {name!r}; these are: {names}, and these last "
            f"with {WITH}SAVING[+SAVING] or {WITHOUT}SAVING[+SAVING] behind"
        ) from error
    return name


def usual(device: str, ablate: Sequence[str] = (), ablated: str = "") -> list[str]:
    """Return the contenders of a full comparison on a device.

    Args:
        device: "cpu" or "cuda".
        ablate: savings, each of which is switched off in a contender of its own.
        ablated: the engine and precision, as in "ort-fp32", that these are switched off in.
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
