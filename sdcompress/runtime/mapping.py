"""Gives memory back to the system: mapped weight files while work goes on, and what was freed.

OpenVINO maps an IR's .bin, and every page that was read stays resident, though the system could
read it again. Dropping such pages costs a read from the page cache when they are needed once more,
and keeps the weights from counting twice: as the file, and as what is made of it.
"""

import ctypes
import sys
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import openvino as ov

from sdcompress.runtime.background import repeating

Span = tuple[int, int]
_DONTNEED = 4  # MADV_DONTNEED on Linux
_SECONDS = 0.2
_MAPS = Path("/proc/self/maps")
# Elsewhere what was read of a mapped file stays resident until the file is unmapped.
GIVES_BACK = sys.platform.startswith("linux") and _MAPS.exists()
_opening = threading.Lock()  # between two looks at the maps no other model may come


@contextmanager
def reading(xml: Path, core: ov.Core | None = None) -> Iterator[ov.Model]:
    """Yields the model, and drops its resident weights again and again inside the block.

    The file stays mapped until the block ends, whatever becomes of the model: were it unmapped
    earlier, other memory could take its place and be dropped. Where the system has no such call (it
    is Linux's), nothing is dropped.
    """
    core = core or ov.Core()
    if not GIVES_BACK:
        yield core.read_model(xml)
        return
    file = xml.with_suffix(".bin")
    with _opening:
        others = mapped(file)
        held = core.read_model(xml)
        spans = mapped(file) - others
    try:
        with repeating(lambda: release(spans), _SECONDS):
            yield held.clone()  # shares the mapped weights
    finally:
        release(spans)


def mapped(file: Path) -> set[Span]:
    """Where this process maps a file, read-only and shared: such pages are always the file's."""
    path = str(file.resolve())
    found = set()
    for line in _MAPS.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        span, permissions, *rest = line.split(maxsplit=5)
        if permissions == "r--s" and rest[-1].strip() == path:
            start, end = (int(one, 16) for one in span.split("-"))
            found.add((start, end))
    return found


def release(spans: Collection[Span]) -> None:
    """Drops the resident pages of mapped spans. Linux only."""
    advise = ctypes.CDLL(None).madvise
    for start, end in spans:
        advise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _DONTNEED)


def give_back_freed() -> None:
    """Returns freed memory that the allocator keeps for later to the system. glibc only."""
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim:
            trim(0)
