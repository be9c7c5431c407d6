"""The memory of processes and devices: now, at its peak, and its growth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from bbt_fast.tuner.artifacts.economics import forget_peak

KIB, MIB = 2**10, 2**20


def memory_of(process: int | str, which: str) -> float:
    """Return the memory of a process in MiB on Linux; 0 on other systems.

    Args:
        process: its id, or "self".
        which: ``VmRSS`` for now, ``VmHWM`` for the peak.
    """
    status = Path(f"/proc/{process}/status")
    if not status.exists():
        return 0.0
    line = next(line for line in status.read_text().splitlines() if line.startswith(which))
    return float(line.split()[1]) * KIB / MIB


def growth(samples: Sequence[float]) -> float:
    """Return the growth per sample over the last half, as the slope of a fitted line."""
    half = samples[len(samples) // 2 :]
    return float(np.polyfit(range(len(half)), half, 1)[0]) if len(half) > 1 else 0.0


class PeakMemory:
    """The peak in MiB: on a CPU that of the process; on CUDA that of the device, without the memory of others.

    On CUDA only the first sample counts: other loaded contenders are idle then, and later ones are not loaded yet.
    """

    def __init__(self, device: torch.device) -> None:
        """Record the device's memory before the contender is loaded."""
        self._device = device
        self._before = self._used() if device.type == "cuda" else 0.0
        self._peak = 0.0

    def start(self) -> None:
        """Reset the peak of the process."""
        if self._device.type == "cpu":
            forget_peak()

    def sample(self) -> None:
        """Update the peak after a round; the runtimes do not release memory."""
        if self._device.type == "cpu" or not self._peak:
            self._peak = max(self._peak, self._used() - self._before)

    @property
    def mib(self) -> float:
        """The peak since the start."""
        return self._peak

    def _used(self) -> float:
        if self._device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self._device)
            return (total - free) / MIB
        return memory_of("self", "VmHWM")
