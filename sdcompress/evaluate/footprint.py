"""Load time, step time, picture time and memory, each pipeline in a fresh child process.

Resident memory counts mapped weight files, which the system can reclaim; anonymous memory does
not. Both are reported.
"""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import psutil

from sdcompress.child import measure_in_child
from sdcompress.evaluate.records import Footprint
from sdcompress.ir import pipeline_bytes
from sdcompress.runtime import Settings

_SAMPLE_SECONDS = 0.01


def measure_footprint(
    folder: Path,
    *,
    prompt: str,
    settings: Settings,
    images: int,
    device: str,
    execution_precision: str | None,
) -> Footprint:
    """Runs :mod:`sdcompress.runtime.footprint` on `folder` and watches the child's memory.

    Raises EvaluationError with the child's last words when it fails.
    """
    job = {
        "folder": str(folder),
        "prompt": prompt,
        "settings": asdict(settings),
        "images": images,
        "device": device,
        "execution_precision": execution_precision,
    }
    watch = _MemoryWatch()
    figures = measure_in_child(job, watch.over)
    return Footprint(
        load_seconds=figures["load_seconds"],
        unet_step_seconds=figures["unet_step_seconds"],
        image_seconds=figures["image_seconds"],
        peak_rss_bytes=figures["peak_rss_bytes"] or watch.peak_rss_bytes,
        peak_anonymous_bytes=watch.peak_anonymous_bytes,
        disk_bytes=pipeline_bytes(folder),
    )


class _MemoryWatch:
    """Samples a process's memory until it ends; keeps the peaks."""

    def __init__(self) -> None:
        self.peak_rss_bytes = 0
        self.peak_anonymous_bytes = 0
        self._stopped = threading.Event()

    @contextmanager
    def over(self, pid: int) -> Iterator[None]:
        """Watches the process `pid` inside the block."""
        thread = threading.Thread(target=self._sample, args=(psutil.Process(pid),), daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            thread.join()

    def _sample(self, process: psutil.Process) -> None:
        while not self._stopped.is_set():
            try:
                resident, anonymous = _memory(process)
            except (psutil.Error, FileNotFoundError, ProcessLookupError):
                return  # it has ended
            self.peak_rss_bytes = max(self.peak_rss_bytes, resident)
            self.peak_anonymous_bytes = max(self.peak_anonymous_bytes, anonymous)
            time.sleep(_SAMPLE_SECONDS)


def _memory(process: psutil.Process) -> tuple[int, int]:
    """Returns resident and anonymous bytes; on Windows peak working set and private bytes."""
    info = process.memory_info()
    status = Path(f"/proc/{process.pid}/status")
    if status.parent.exists():
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("RssAnon:"):
                return info.rss, int(line.split()[1]) * 1024
        return info.rss, 0  # a zombie no longer lists its memory
    if sys.platform == "win32":
        return info.peak_wset, info.private
    return info.rss, process.memory_full_info().uss
