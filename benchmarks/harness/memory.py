"""How much memory a contender takes at most."""

from __future__ import annotations

from pathlib import Path

import torch

from bbt_fast.tuner.artifacts.economics import forget_peak

KIB, MIB = 2**10, 2**20


def memory_of(process: int | str, which: str) -> float:
    """Return what a process holds in MiB, as Linux counts it; 0 on other systems.

    Args:
        process: its id, or "self".
        which: ``VmRSS`` for now, ``VmHWM`` for the peak.
    """
    status = Path(f"/proc/{process}/status")
    if not status.exists():
        return 0.0
    line = next(line for line in status.read_text().splitlines() if line.startswith(which))
    return float(line.split()[1]) * KIB / MIB


class PeakMemory:
    """The peak in MiB: of the process on a CPU, while running; on CUDA of the device, less what others have there.

    On CUDA the first look counts, while others that are loaded are idle and those to come are not there yet.
    """

    def __init__(self, device: torch.device) -> None:
        """Remember what the device holds before the contender is loaded."""
        self._device = device
        self._before = self._used() if device.type == "cuda" else 0.0
        self._peak = 0.0

    def start(self) -> None:
        """Forget the peak so far."""
        if self._device.type == "cpu":
            forget_peak()

    def sample(self) -> None:
        """Look, after a round: the runtimes keep what they took."""
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
