"""The smallest memory limit under which a picture can still be drawn, on Linux.

A control group of our own is given less and less memory, until the system kills the child for it,
or the child has to read its mapped weights again and again and takes much too long. Making such a
group needs rights that not every system grants.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from sdcompress.child import measure_in_child
from sdcompress.errors import EvaluationError
from sdcompress.evaluate.performance import child_job
from sdcompress.evaluate.pictures import Variant
from sdcompress.ir import pipeline_files
from sdcompress.progress import Advance

_ROOT = Path("/sys/fs/cgroup")
_PATIENCE = 3.0  # times as long as without a limit
_LEAST_SHARE = 0.1  # of the unlimited peak, where the search begins
_TRIES = 6  # halvings of the range in between: 3 % of the peak is left


@dataclass(frozen=True)
class _Group:
    """A control group; the names of its files differ between versions 1 and 2."""

    folder: Path
    limit: str
    swap: str
    unlimited: str

    def set_limit(self, limit_bytes: int) -> None:
        """Limits memory, and forbids to swap instead where swap can be limited."""
        swaps = (self.folder / self.swap).exists()
        together = "memsw" in self.swap  # memory and swap: never below memory alone
        if together and swaps:
            self._write(self.swap, self.unlimited)
        self._write(self.limit, str(limit_bytes))
        if swaps:
            self._write(self.swap, str(limit_bytes if together else 0))

    def take(self, pid: int) -> None:
        """Moves a process into the group."""
        self._write("cgroup.procs", str(pid))

    def _write(self, name: str, text: str) -> None:
        try:
            (self.folder / name).write_text(text, encoding="ascii")
        except OSError as error:
            raise EvaluationError(_refusal(f"{self.folder / name}: {error.strerror}")) from error


def require_memory_limits() -> None:
    """Raises EvaluationError unless this system lets us set a memory limit."""
    with _group() as group:
        group.set_limit(2**40)
        idle = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        try:
            group.take(idle.pid)
        finally:
            idle.kill()
            idle.communicate()


def least_memory_bytes(
    variant: Variant, prompt: str, peak_bytes: int, on_try: Advance, *, tries: int = _TRIES
) -> int:
    """The smallest limit that suffices, found by halving the range below twice the peak.

    Raises EvaluationError where the system lets nobody set a limit, or when twice the peak does not
    suffice.
    """
    with _group() as group:
        low, high = int(_LEAST_SHARE * peak_bytes), 2 * peak_bytes
        start = time.monotonic()
        if not _draws(variant, prompt, group, high, seconds=None):
            raise EvaluationError(f"{variant.folder} draws nothing within {high} bytes")
        patience = _PATIENCE * (time.monotonic() - start)
        on_try(1, tries + 1)
        for tried in range(tries):
            middle = (low + high) // 2
            if _draws(variant, prompt, group, middle, patience):
                high = middle
            else:
                low = middle
            on_try(tried + 2, tries + 1)
    return high


def _draws(
    variant: Variant, prompt: str, group: _Group, limit_bytes: int, seconds: float | None
) -> bool:
    """Tells whether a child draws a picture with so much memory, and in so much time."""
    group.set_limit(limit_bytes)
    _forget(variant.folder)

    @contextmanager
    def confined(pid: int) -> Iterator[None]:
        group.take(pid)
        timer = threading.Timer(seconds or threading.TIMEOUT_MAX, psutil.Process(pid).kill)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    try:
        measure_in_child(child_job(variant, prompt), confined)
    except EvaluationError:
        return False
    return True


def _forget(folder: Path) -> None:
    """Has the system drop what it keeps in memory of a pipeline's files.

    It counts cached pages against whoever read them first, so the child would get them for free.
    """
    for file in pipeline_files(folder):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


@contextmanager
def _group() -> Iterator[_Group]:
    """A control group that is gone afterwards."""
    reasons = []
    for group in _places():
        try:
            group.folder.mkdir()
        except OSError as error:
            reasons.append(f"{group.folder.parent}: {error.strerror}")
            continue
        try:
            if (group.folder / group.limit).exists():
                yield group
                return
            reasons.append(f"{group.folder.parent} does not limit memory")
        finally:
            group.folder.rmdir()
    raise EvaluationError(_refusal("; ".join(reasons) or "it has no control groups"))


def _refusal(reason: str) -> str:
    return (
        f"this system lets nobody here set a memory limit: {reason}. Leave evaluate.least_memory "
        "out"
    )


def _places() -> Iterator[_Group]:
    """Groups that might be made: below or beside our own, in either version's hierarchy."""
    own = Path("/proc/self/cgroup")
    if not own.exists():
        return
    for line in own.read_text(encoding="ascii").splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            place = _ROOT / "memory" / path.lstrip("/")
            names = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "-1")
        elif not controllers:
            place = _ROOT / path.lstrip("/")
            names = ("memory.max", "memory.swap.max", "max")
        else:
            continue
        for parent in dict.fromkeys((place, place.parent)):
            if parent == _ROOT or _ROOT in parent.parents:
                yield _Group(parent / f"sdcompress-{os.getpid()}", *names)
