"""Memory of processes while they work, and what is left for them."""

import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import psutil

from sdcompress.runtime.background import repeating

_SEARCH_SECONDS = 0.5  # looking for children reads about every process there is
_GONE = (psutil.Error, FileNotFoundError, ProcessLookupError)


@dataclass(frozen=True)
class Sampled:
    """Memory at a moment, in seconds since the epoch."""

    time: float
    rss_bytes: int
    anonymous_bytes: int


class MemoryWatch:
    """Samples a process's memory, with `tree` that of its children as well; keeps the peaks.

    With `keep`, all samples are in `samples`. Resident memory counts mapped files, which the system
    can reclaim; anonymous memory does not.
    """

    def __init__(self, *, seconds: float = 0.01, tree: bool = False, keep: bool = False) -> None:
        self.peak_rss_bytes = 0
        self.peak_anonymous_bytes = 0
        self.samples: list[Sampled] = []
        self._keep = keep
        self._seconds = seconds
        self._tree = tree
        self._children: list[psutil.Process] = []
        self._searched = -_SEARCH_SECONDS

    def over(self, pid: int) -> AbstractContextManager[None]:
        """Watches the process `pid` inside the block."""
        process = psutil.Process(pid)
        return repeating(lambda: self._sample(process), self._seconds)

    def _sample(self, process: psutil.Process) -> None:
        try:
            memory = [process_memory(process)]
            if self._tree and time.monotonic() - self._searched > _SEARCH_SECONDS:
                self._children = process.children(recursive=True)
                self._searched = time.monotonic()
        except _GONE:
            return
        for child in self._children:
            try:
                memory.append(process_memory(child))
            except _GONE:
                continue
        rss, anonymous = (sum(column) for column in zip(*memory, strict=True))
        self.peak_rss_bytes = max(self.peak_rss_bytes, rss)
        self.peak_anonymous_bytes = max(self.peak_anonymous_bytes, anonymous)
        if self._keep:
            self.samples.append(Sampled(time.time(), rss, anonymous))


def process_memory(process: psutil.Process) -> tuple[int, int]:
    """Returns resident and anonymous bytes; on Windows working set and private bytes."""
    info = process.memory_info()
    status = Path(f"/proc/{process.pid}/status")
    if status.parent.exists():
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("RssAnon:"):
                return info.rss, int(line.split()[1]) * 1024
        return info.rss, 0  # a zombie no longer lists its memory
    if sys.platform == "win32":
        return info.rss, info.private
    return info.rss, process.memory_full_info().uss


def available_memory_bytes() -> int:
    """Memory that can be used without swapping, within the limits of Linux control groups."""
    available = int(psutil.virtual_memory().available)
    own = Path("/proc/self/cgroup")
    if not own.exists():
        return available
    root = Path("/sys/fs/cgroup")
    return min([available, *left_in_groups(root, own.read_text(encoding="ascii"))])


def left_in_groups(root: Path, membership: str) -> Iterator[int]:
    """Yields what a process may still take in its control group and in all above (version 2).

    Files that the system would drop do not count as taken.
    """
    for line in membership.splitlines():
        if not line.startswith("0::"):
            continue
        group = root / line.removeprefix("0::").lstrip("/")
        for one in (group, *group.parents):
            limit = one / "memory.max"
            if limit.exists() and (allowed := limit.read_text("ascii").strip()) != "max":
                words = (one / "memory.stat").read_text("ascii").split()
                values = dict(zip(words[::2], map(int, words[1::2]), strict=True))
                files = values.get("inactive_file", 0) + values.get("active_file", 0)
                used = int((one / "memory.current").read_text("ascii"))
                yield max(0, int(allowed) - used + files)
