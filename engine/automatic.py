"""The preferences of ``--engine auto``."""

from __future__ import annotations

from dataclasses import dataclass

from .cpu import bf16_fault


@dataclass(frozen=True)
class Choice:
    """An engine in a precision."""

    engine: str
    precision: str

    def __str__(self) -> str:
        return f"{self.engine} in {self.precision}"


FASTEST: dict[str, tuple[Choice, ...]] = {
    "cpu": (
        Choice("openvino", "bf16"),
        Choice("torch", "bf16"),
        Choice("openvino", "fp32"),
        Choice("ort", "fp32"),
        Choice("torch", "fp32"),
        Choice("ort", "fp16"),
        Choice("torch", "fp16"),
    ),
    "cuda": (
        Choice("trt", "fp16"),
        Choice("torch", "fp16"),
        Choice("ort", "fp16"),
        Choice("torch", "bf16"),
        Choice("ort", "fp32"),
        Choice("torch", "fp32"),
    ),
}
"""By device type, fastest first, as measured (docs/benchmarks.md), but for trt, which has not run on a card."""


def hardware_fault(choice: Choice, device_type: str) -> str | None:
    """Return why a choice is slow on this hardware, or None."""
    return bf16_fault() if device_type == "cpu" and choice.precision == "bf16" else None
