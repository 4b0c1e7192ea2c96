"""How much memory a piece of work takes at its peak, where the system tells it."""

import re
from pathlib import Path

import torch


_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_CLEAR_PEAK = "5"  # to this file: the peak of the resident memory starts anew (proc(5))


class PeakMemory:
    """The most memory that was held since `start_peak`, above what was held when this was made.

    On CUDA it is what torch's allocator gave out. On a CPU under Linux it is the resident memory of the process; pieces of
    it that were freed before may be used again, so that small amounts are not told apart. Elsewhere it is not known.

    Args:
        device: that the work is done on.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._before = self._held()

    def start_peak(self) -> None:
        """Forget the peak so far."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        elif self._device.type == "cpu":
            try:
                _CLEAR.write_text(_CLEAR_PEAK)
            except OSError:
                self._before = None  # without it, the peak would be that of everything before

    def read(self) -> int | None:
        """The peak in bytes; None where it is not known."""
        if self._before is None:
            return None
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) - self._before
        return max(0, _status("VmHWM") - self._before)

    def _held(self) -> int | None:
        if self._device.type == "cuda":
            return torch.cuda.memory_allocated(self._device)
        return _status("VmRSS") if self._device.type == "cpu" else None


def _status(field: str) -> int | None:
    """A field of the process's status in bytes; None on systems without it."""
    try:
        found = re.search(rf"^{field}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
