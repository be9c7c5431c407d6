"""How much memory a contender takes at most."""

from __future__ import annotations

from pathlib import Path

import torch

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")
FORGET_PEAK = "5"
KIB, MIB = 2**10, 2**20


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
        if self._device.type == "cpu" and CLEAR.exists():
            CLEAR.write_text(FORGET_PEAK)

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
        if not STATUS.exists():
            return 0.0
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return float(line.split()[1]) * KIB / MIB
