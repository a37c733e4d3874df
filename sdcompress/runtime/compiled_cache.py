"""OpenVINO's folder of compiled models, which by itself only grows, kept within a size."""

import logging
import time
from pathlib import Path

_log = logging.getLogger(__name__)
_STARTED = time.time()


def keep_within(folder: Path, most_bytes: int) -> None:
    """Deletes what was not read for longest until compiled models take at most `most_bytes`.

    Other files in the folder stay, a GPU's compiled kernels among them. When a file was read is
    told by the file system, where it keeps account; else when it was written.
    """
    found = []
    for file in folder.glob("*.blob"):
        if not file.stem.isdecimal():  # OpenVINO's are numbers
            continue
        try:
            status = file.stat()
        except FileNotFoundError:
            continue  # another process was quicker
        found.append((max(status.st_atime, status.st_mtime), status.st_size, file))
    left = sum(size for _, size, _ in found)
    for used, size, file in sorted(found):
        if left <= most_bytes:
            return
        if used > _STARTED:
            _log.warning(
                "%s holds no more than %.1f GB, too little for the models of this one run, which "
                "will be compiled again: raise --cache-size.",
                folder,
                most_bytes / 1e9,
            )
        try:
            file.unlink(missing_ok=True)
        except OSError as fault:  # in use, on Windows
            _log.info("%s cannot be deleted: %s", file, fault)
            continue
        left -= size
