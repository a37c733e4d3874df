"""Load time, step time, picture time and memory, each pipeline in a fresh child process.

Resident memory counts mapped weight files, which the system can reclaim; anonymous memory does
not. Both are reported.
"""

import json
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from sdcompress.errors import EvaluationError
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
    child = subprocess.Popen(
        [sys.executable, "-m", "sdcompress.runtime.footprint"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    watch = _MemoryWatch(child.pid)
    watch.start()
    try:
        output, faults = child.communicate(json.dumps(job))
    finally:
        child.kill()
        watch.stop()
    if child.returncode != 0:
        last = faults.strip().splitlines()[-1] if faults.strip() else "no message"
        raise EvaluationError(f"measuring {folder} failed (exit {child.returncode}): {last}")
    figures: dict[str, Any] = json.loads(output.splitlines()[-1])
    return Footprint(
        load_seconds=figures["load_seconds"],
        unet_step_seconds=figures["unet_step_seconds"],
        image_seconds=figures["image_seconds"],
        peak_rss_bytes=figures["peak_rss_bytes"] or watch.peak_rss_bytes,
        peak_anonymous_bytes=watch.peak_anonymous_bytes,
        disk_bytes=pipeline_bytes(folder),
    )


class _MemoryWatch(threading.Thread):
    """Samples a process's memory until it ends; keeps the peaks."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.peak_rss_bytes = 0
        self.peak_anonymous_bytes = 0
        self._process = psutil.Process(pid)
        self._stopped = threading.Event()

    def run(self) -> None:
        while not self._stopped.is_set():
            try:
                resident, anonymous = _memory(self._process)
            except (psutil.Error, FileNotFoundError, ProcessLookupError):
                return  # it has ended
            self.peak_rss_bytes = max(self.peak_rss_bytes, resident)
            self.peak_anonymous_bytes = max(self.peak_anonymous_bytes, anonymous)
            time.sleep(_SAMPLE_SECONDS)

    def stop(self) -> None:
        self._stopped.set()
        self.join()


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
