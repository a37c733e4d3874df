"""How much memory this process has resident: now, at most, and in each phase of its work."""

import ctypes
import os
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from sdcompress.runtime.background import repeating

_SECONDS = 0.01


class PhasePeaks:
    """Samples resident memory every ten milliseconds; keeps the most of each phase in `peaks`.

    `peaks` stays empty where the system does not tell.
    """

    def __init__(self) -> None:
        self.peaks: dict[str, int] = {}
        self._phase = ""

    def begin(self, phase: str) -> None:
        """Counts what follows to `phase`."""
        self._phase = phase

    def watching(self) -> AbstractContextManager[None]:
        """Samples inside the block."""
        return repeating(self._sample, _SECONDS)

    def _sample(self) -> None:
        phase, resident = self._phase, resident_bytes()
        if phase and resident is not None:
            self.peaks[phase] = max(self.peaks.get(phase, 0), resident)


def resident_bytes() -> int | None:
    """Returns what is resident now, mapped files included, or None where the system has no word."""
    if sys.platform == "win32":
        counters = _windows_counters()
        return int(counters.working_set_size) if counters else None
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return None


def peak_rss_bytes() -> int | None:
    """Returns this process's resident high-water mark, or None where the system keeps none."""
    if sys.platform == "win32":
        counters = _windows_counters()
        return int(counters.peak_working_set_size) if counters else None
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return None


class _ProcessMemoryCounters(ctypes.Structure):
    """PROCESS_MEMORY_COUNTERS of the Windows API."""

    _fields_ = (
        ("cb", ctypes.c_uint32),
        ("page_fault_count", ctypes.c_uint32),
        *((name, ctypes.c_size_t) for name in ("peak_working_set_size", "working_set_size",
          "quota_peak_paged_pool", "quota_paged_pool", "quota_peak_non_paged_pool",
          "quota_non_paged_pool", "pagefile", "peak_pagefile")),
    )  # fmt: skip


def _windows_counters() -> _ProcessMemoryCounters | None:
    counters = _ProcessMemoryCounters(cb=ctypes.sizeof(_ProcessMemoryCounters))
    kernel: Any = ctypes.WinDLL("kernel32")  # type: ignore[attr-defined]  # on Windows only
    kernel.GetCurrentProcess.restype = ctypes.c_void_p
    kernel.K32GetProcessMemoryInfo.argtypes = (
        ctypes.c_void_p, ctypes.POINTER(_ProcessMemoryCounters), ctypes.c_uint32,
    )  # fmt: skip
    found = kernel.K32GetProcessMemoryInfo(
        kernel.GetCurrentProcess(), ctypes.byref(counters), counters.cb
    )
    return counters if found else None
