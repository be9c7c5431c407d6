"""What is installed and what the hardware can do: it explains why a run is slow or does not start."""

from __future__ import annotations

import platform
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec

import torch

from ...engine.cpu import bf16_speedup, has_bf16, instruction_sets
from ...engine.loading import ENGINES, Row, engine_class, prospects
from ...export.bindings import preferred
from ...export.cache import cache_folder
from ...export.errors import BbtFastError
from ..artifacts.result import versions

Section = dict[str, str]
ONNX_RUNTIMES = ("onnxruntime", "onnxruntime-gpu")
BOTH_RUNTIMES = (
    "PROBLEM: onnxruntime and onnxruntime-gpu overwrite each other; run `pip uninstall onnxruntime onnxruntime-gpu`, "
    "then install one of them"
)
GIB = 2**30
TESTED = {
    "torch": "2.11 (CUDA) and 2.13 (CPU)",
    "transformers": "5.17 to 5.23",
    "onnx": "1.21 to 1.23",
    "onnxruntime": "1.30 and 1.31",
    "onnxruntime-gpu": "1.30 and 1.31",
    "openvino": "2026.1 to 2026.4",
}
"""The versions that tests and benchmarks ran with."""


def diagnosis() -> dict[str, Section]:
    """Return facts by section and name."""
    return {
        "versions": _versions(),
        "hardware": _hardware(),
        "engines": _engines(),
        "engine auto, fastest first": _automatic(),
        "several processes": _workers(),
        "files": _files(),
    }


def _versions() -> Section:
    facts = versions()
    facts |= {name: f"{facts[name]}  (tested: {tested})" for name, tested in TESTED.items() if name in facts}
    if facts.keys() >= {*ONNX_RUNTIMES}:
        facts |= {name: f"{facts[name]}  {BOTH_RUNTIMES}" for name in ONNX_RUNTIMES}
    return facts


def _hardware() -> Section:
    facts = {
        "system": platform.platform(),
        "CPU": f"{platform.machine()}, {torch.get_num_threads()} threads for PyTorch",
        "instruction sets": ", ".join(instruction_sets()) or "none that matter here",
        "bf16": f"{'' if has_bf16() else 'no instructions; '}{bf16_speedup():.1f} times fp32's rate of matrix products",
    }
    if not torch.cuda.is_available():
        build = "a CPU build" if torch.version.cuda is None else f"built for CUDA {torch.version.cuda}"
        return facts | {"GPU": f"none that PyTorch ({build}) can use"}
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        package = preferred((about.major, about.minor))
        facts[f"cuda:{index}"] = (
            f"{about.name}, {about.total_memory / GIB:.0f} GiB, compute capability {about.major}.{about.minor}, "
            f"PyTorch for CUDA {torch.version.cuda}; for --engine trt: {package.title}"
            + ("" if package.installed else f", `{package.install}`")
        )
    return facts


def _engines() -> Section:
    """Return whether each engine is installed, and its precisions; --precision auto takes the first that pays."""
    facts = {}
    for name in ENGINES:
        try:
            precisions = engine_class(name).precisions
        except BbtFastError as error:
            facts[name] = str(error)
            continue
        devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
        can = [f"{', '.join(precisions[device])} on {device}" for device in devices if device in precisions]
        facts[name] = f"installed ({_driven(ENGINES[name])}): {'; '.join(can) or 'nothing on this machine'}"
    return facts


def _automatic() -> Section:
    """Return what --engine auto takes here, and why it does not take what is faster."""
    facts: Section = {}
    taken = False
    for choice, fault in prospects():
        verdict = "if the above fails the parity gate" if taken else "taken, if it passes the parity gate"
        facts[str(choice)] = verdict if fault is None else f"no: {fault}"
        taken |= fault is None
    return facts


def _workers() -> Section:
    """Return whether --workers can be used, and how many workers of what kind this machine has room for."""
    if not find_spec("ray"):
        return {"--workers": "ray is not installed: `pip install 'bbt-fast[ray]'`"}
    gpus, threads = torch.cuda.device_count(), torch.get_num_threads()
    room = f"up to {gpus} here, a GPU each" if gpus else f"up to {threads} here, a CPU thread each"
    return {"--workers": f"ray {version('ray')}; {room}; on other machines with --ray_address"}


def _files() -> Section:
    folder = cache_folder()
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.exists() else 0
    return {"graphs": f"{folder} ({size / GIB:.2f} GiB)"}


def _driven(row: Row) -> str:
    """Return the versions of the packages that an engine drives, by name where it can be one of several."""
    distributions = packages_distributions()
    found = {
        package: next(map(version, distributions.get(package, ())), "unknown version")
        for package in filter(find_spec, row.requires)
    }
    if len(row.requires) == 1:
        return "".join(found.values())
    return ", ".join(f"{package} {known}" for package, known in found.items())
