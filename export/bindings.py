"""TensorRT's Python API: selects one of its two packages by GPU.

TensorRT supports data-centre cards, and TensorRT for RTX supports GeForce and RTX cards. Their common names are
identical, so one driver serves both: ``trt`` below forwards to the selected package. ``tensorrt_rtx.py`` contains the
calls that only TensorRT for RTX has.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from .errors import MissingExtraError, UsageError

Capability = tuple[int, int]
"""Compute capability of a GPU: (8, 6) for an RTX 3090."""


@dataclass(frozen=True)
class Package:
    """One of the two packages."""

    title: str
    module: str
    install: str
    capabilities: frozenset[Capability] | None
    """Compute capabilities of the supported GPUs; None for all."""

    @property
    def installed(self) -> bool:
        """Whether the package is installed."""
        return find_spec(self.module) is not None


RTX = Package(
    "TensorRT for RTX",
    "tensorrt_rtx_bindings",
    "pip install 'bbt-fast[trt-rtx]'",
    frozenset({(7, 5), (8, 6), (8, 9), (12, 0), (12, 1)}),
)
CLASSIC = Package("TensorRT", "tensorrt", "pip install 'bbt-fast[trt]'", None)
PACKAGES = (RTX, CLASSIC)
"""In order of preference, for a GPU that both support."""

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
"""Compute capabilities of common cards, from NVIDIA's table (developer.nvidia.com/cuda-gpus)."""


@dataclass(frozen=True)
class Gpu:
    """The GPU that a plan is built for."""

    name: str
    capability: Capability

    def __str__(self) -> str:
        """Return the name as part of a file name."""
        return f"{self.name.replace(' ', '_')}-sm{self.capability[0]}{self.capability[1]}"


def gpu_named(text: str) -> Gpu:
    """Return the GPU for a compute capability (sm86, 8.6) or a card (RTX 3090, 3090).

    Raises:
        UsageError: if plans for that GPU cannot be built ahead of time.
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
        f"--gpu is {text!r}, but plans can be built ahead of time only for {known}, or for a card: {', '.join(CARDS)}. "
        "For a data-centre card, build the plans on the card itself."
    )


class _Bindings:
    """Forwards attributes to the selected package."""

    def __init__(self) -> None:
        self.package = next((package for package in reversed(PACKAGES) if package.installed), CLASSIC)

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self.package.module), name)


trt = _Bindings()


def chosen() -> Package:
    """Return the selected package."""
    return trt.package


def package_for(capability: Capability) -> Package:
    """Return the preferred package among those that are installed and support a GPU.

    Raises:
        MissingExtraError: if none is installed.
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
    """Return the preferred package for a GPU, installed or not."""
    return _able(capability)[0]


def _able(capability: Capability) -> list[Package]:
    return [package for package in PACKAGES if package.capabilities is None or capability in package.capabilities]


def choose(capability: Capability) -> Package:
    """Select the package for a GPU and return it.

    Raises:
        MissingExtraError: if none is installed.
    """
    trt.package = package_for(capability)
    return trt.package
