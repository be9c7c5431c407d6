"""TensorRT's Python API, of whichever of its two packages serves a GPU.

TensorRT drives data-centre cards, TensorRT for RTX drives GeForce and RTX cards. The names that both have are the
same, so one driver serves both: ``trt`` below stands for the package that was chosen. What TensorRT for RTX alone has
is called in ``tensorrt_rtx.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from .errors import MissingExtraError, UsageError

Capability = tuple[int, int]
"""Of a GPU: (8, 6) for an RTX 3090."""


@dataclass(frozen=True)
class Package:
    """One of the two."""

    title: str
    module: str
    install: str
    capabilities: frozenset[Capability] | None
    """Of the GPUs that it serves; None for all."""

    @property
    def installed(self) -> bool:
        """Whether it is there."""
        return find_spec(self.module) is not None


RTX = Package(
    "TensorRT for RTX",
    "tensorrt_rtx_bindings",
    "pip install 'bbt-fast[trt-rtx]'",
    frozenset({(7, 5), (8, 6), (8, 9), (12, 0), (12, 1)}),
)
CLASSIC = Package("TensorRT", "tensorrt", "pip install 'bbt-fast[trt]'", None)
PACKAGES = (RTX, CLASSIC)
"""In order of preference, for a GPU that both serve."""

CARDS: dict[str, Capability] = {
    "RTX 2080": (7, 5),
    "RTX 3060": (8, 6),
    "RTX 3070": (8, 6),
    "RTX 3080": (8, 6),
    "RTX 3090": (8, 6),
    "RTX A6000": (8, 6),
    "RTX 4060": (8, 9),
    "RTX 4070": (8, 9),
    "RTX 4080": (8, 9),
    "RTX 4090": (8, 9),
    "L40S": (8, 9),
    "RTX 5070": (12, 0),
    "RTX 5080": (12, 0),
    "RTX 5090": (12, 0),
}
"""Compute capabilities of cards that people name, by NVIDIA's table (developer.nvidia.com/cuda-gpus)."""


@dataclass(frozen=True)
class Gpu:
    """What a plan is built for."""

    name: str
    capability: Capability

    def __str__(self) -> str:
        """Return it as part of a file name."""
        return f"{self.name.replace(' ', '_')}-sm{self.capability[0]}{self.capability[1]}"


def gpu_named(text: str) -> Gpu:
    """Return the GPU that a user names, by compute capability (sm86, 8.6) or card (RTX 3090, 3090).

    Raises:
        UsageError: if that is no GPU that plans can be built for ahead of time.
    """
    plain = text.lower().replace("geforce", "").strip()
    for major, minor in sorted(RTX.capabilities or ()):
        if plain in (f"sm{major}{minor}", f"sm_{major}{minor}", f"{major}.{minor}"):
            return Gpu(f"sm{major}{minor}", (major, minor))
    for card, capability in CARDS.items():
        if plain in (card.lower(), card.lower().removeprefix("rtx "), card.lower().replace(" ", "")):
            return Gpu(card, capability)
    known = ", ".join(f"sm{major}{minor}" for major, minor in sorted(RTX.capabilities or ()))
    raise UsageError(
        f"--gpu is {text!r}, but plans can be built ahead of time for {known}, or for a card: {', '.join(CARDS)}. "
        "Data-centre cards build theirs on the card itself."
    )


class _Bindings:
    """The chosen package's names."""

    def __init__(self) -> None:
        self.package = next((package for package in reversed(PACKAGES) if package.installed), CLASSIC)

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self.package.module), name)


trt = _Bindings()


def chosen() -> Package:
    """Return the package that ``trt`` stands for."""
    return trt.package


def package_for(capability: Capability) -> Package:
    """Return the package that serves a GPU: the preferred one that is installed.

    Raises:
        MissingExtraError: if none is installed that does.
    """
    able = _able(capability)
    for package in able:
        if package.installed:
            return package
    raise MissingExtraError(
        f"a GPU of compute capability {capability[0]}.{capability[1]} needs {able[0].title}, which is not installed: "
        f"`{able[0].install}`."
    )


def preferred(capability: Capability) -> Package:
    """Return the package that suits a GPU best, installed or not."""
    return _able(capability)[0]


def _able(capability: Capability) -> list[Package]:
    return [package for package in PACKAGES if package.capabilities is None or capability in package.capabilities]


def choose(capability: Capability) -> Package:
    """Let ``trt`` stand for the package that serves a GPU, and return it.

    Raises:
        MissingExtraError: if none is installed that does.
    """
    trt.package = package_for(capability)
    return trt.package
