"""Measures one pipeline in a process of its own: ``python -m sdcompress.runtime.footprint``.

Reads a job as JSON on standard input and prints the figures as one JSON line. Runs with the
runtime's packages alone, so that memory is that of the engine that ships.
"""

import ctypes
import itertools
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from sdcompress.runtime.denoise import Step
from sdcompress.runtime.pipeline import Pipeline
from sdcompress.runtime.settings import Job, Settings
from sdcompress.runtime.streaming import stream


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Loads, draws a batch to warm up, one alone and `images` together, and returns the figures.

    `load_seconds` includes the compilation of every component. `image_seconds` is the median time
    of a batch drawn alone and `unet_step_seconds` the median between its steps;
    `images_per_second` counts all pictures when batches overlap.
    """
    settings = Settings(**job["settings"])
    batch, lanes = job.get("batch", 1), job.get("streams", 1)
    start = time.perf_counter()
    pipeline = Pipeline.load(
        Path(job["folder"]),
        device=job["device"],
        execution_precision=job["execution_precision"],
        threads=job.get("threads"),
        streams=lanes,
        static=job.get("static", True),
        verify="never",
    )
    pipeline.compile(settings, batch)
    load_seconds = time.perf_counter() - start
    jobs = [Job(job["prompt"], seed=seed) for seed in range(max(job["images"], batch))]
    pipeline.draw(jobs[:batch], settings)
    alone = [
        _time_one(pipeline, jobs[index : index + batch], settings)
        for index in range(0, len(jobs) - batch + 1, batch)
    ]
    figures = {
        "load_seconds": load_seconds,
        "unet_step_seconds": statistics.median(step for _, steps in alone for step in steps),
        "image_seconds": statistics.median(seconds for seconds, _ in alone),
    }
    if lanes > 1 or job.get("overlap", False):
        start = time.perf_counter()
        drawn = sum(1 for _ in stream(pipeline, jobs, settings, batch=batch, lanes=lanes))
        figures["images_per_second"] = drawn / (time.perf_counter() - start)
    return figures | {"peak_rss_bytes": peak_rss_bytes()}


def _time_one(pipeline: Pipeline, jobs: list[Job], settings: Settings) -> tuple[float, list[float]]:
    ticks: list[float] = []

    def tick(_: Step) -> None:
        ticks.append(time.perf_counter())

    start = time.perf_counter()
    pipeline.draw(jobs, settings, on_step=tick)
    elapsed = time.perf_counter() - start
    return elapsed, [later - earlier for earlier, later in itertools.pairwise(ticks)]


def peak_rss_bytes() -> int | None:
    """Returns this process's resident high-water mark, or None where the system keeps none."""
    if sys.platform == "win32":
        return _peak_working_set_bytes()
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


def _peak_working_set_bytes() -> int | None:
    counters = _ProcessMemoryCounters(cb=ctypes.sizeof(_ProcessMemoryCounters))
    kernel: Any = ctypes.WinDLL("kernel32")  # type: ignore[attr-defined]  # on Windows only
    kernel.GetCurrentProcess.restype = ctypes.c_void_p
    kernel.K32GetProcessMemoryInfo.argtypes = (
        ctypes.c_void_p, ctypes.POINTER(_ProcessMemoryCounters), ctypes.c_uint32,
    )  # fmt: skip
    found = kernel.K32GetProcessMemoryInfo(
        kernel.GetCurrentProcess(), ctypes.byref(counters), counters.cb
    )
    return int(counters.peak_working_set_size) if found else None


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(json.load(sys.stdin))) + "\n")
