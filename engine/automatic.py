"""What ``--engine auto`` prefers."""

from __future__ import annotations

from dataclasses import dataclass

from .cpu import computes_bf16


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
        Choice("ort", "fp16"),
        Choice("torch", "fp16"),
        Choice("torch", "bf16"),
        Choice("ort", "fp32"),
        Choice("torch", "fp32"),
    ),
}
"""By device type, fastest first: on the CPU as measured (docs/benchmarks.md), on CUDA as expected."""


def hardware_fault(choice: Choice, device_type: str) -> str | None:
    """Say why a choice is not worth taking on this hardware, or None."""
    if device_type == "cpu" and choice.precision == "bf16" and not computes_bf16():
        return "this CPU does not multiply bf16 and would emulate it slowly"
    return None
