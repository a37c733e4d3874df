"""OpenVINO's folder of compiled models, which by itself only grows, kept within a size."""

import logging
from pathlib import Path

_log = logging.getLogger(__name__)


def keep_within(folder: Path, most_bytes: int) -> None:
    """Deletes what was not read for longest until compiled models take at most `most_bytes`.

    Other files in the folder stay. When one was read is told by the file system, where it keeps
    account; else when it was written.
    """
    found = []
    for file in folder.glob("*.blob"):
        try:
            status = file.stat()
        except FileNotFoundError:
            continue  # another process was quicker
        found.append((max(status.st_atime, status.st_mtime), status.st_size, file))
    left = sum(size for _, size, _ in found)
    for _, size, file in sorted(found):
        if left <= most_bytes:
            return
        try:
            file.unlink(missing_ok=True)
        except OSError as fault:  # in use, on Windows
            _log.info("%s cannot be deleted: %s", file, fault)
            continue
        left -= size
