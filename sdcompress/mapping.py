"""Gives mapped weight files back to the system while work on them goes on.

OpenVINO maps an IR's .bin, and every page that was read stays resident, though the system could
read it again. Dropping such pages costs a read from the page cache when they are needed once more,
and keeps the weights from counting twice: as the file, and as what is made of it.
"""

import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_DONTNEED = 4  # MADV_DONTNEED on Linux
_SECONDS = 0.2


@contextmanager
def releasing(file: Path) -> Iterator[None]:
    """Drops the resident pages of a mapped file again and again inside the block, and at its end.

    Where the system has no such call (it is Linux's), nothing happens.
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    done = threading.Event()

    def work() -> None:
        while not done.wait(_SECONDS):
            release(file)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        release(file)


def release(file: Path) -> int:
    """Drops the resident pages of a file's read-only, shared mappings; returns the bytes mapped.

    Only such mappings: their pages are always the file's, so nothing can be lost. Linux only.
    """
    path = str(file.resolve())
    advise = ctypes.CDLL(None, use_errno=True).madvise
    total = 0
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        span, permissions, *rest = line.split(maxsplit=5)
        if permissions != "r--s" or rest[-1].strip() != path:
            continue
        start, end = (int(one, 16) for one in span.split("-"))
        if advise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _DONTNEED) == 0:
            total += end - start
    return total
