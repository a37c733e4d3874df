"""OpenVINO's folders of compiled models, which by themselves only grow, kept within a size."""

import hashlib
import logging
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import openvino as ov

_log = logging.getLogger(__name__)
_STARTED = time.time()


def folder_of(cache: Path, model: ov.Model, name: str, options: Mapping[str, object]) -> Path:
    """Where in the cache a model is kept, compiled with these options.

    OpenVINO does not tell which of its files it reads, so models that differ in more than their
    weights have folders of their own.
    """
    shapes = [str(port.partial_shape) for port in model.inputs]
    asked = sorted((key, str(value)) for key, value in options.items())
    told = repr((len(model.get_ops()), shapes, asked))
    return cache / f"{name}-{hashlib.sha256(told.encode()).hexdigest()[:16]}"


def note_use(folder: Path) -> None:
    """The models in a folder of the cache were used now, whether they were read or written.

    File systems do not keep account of what is read, or only once a day.
    """
    for file in folder.glob("*.blob"):
        with suppress(OSError):  # another process has deleted it, or may alone write here
            os.utime(file)


def keep_within(cache: Path, most_bytes: int) -> None:
    """Deletes what was not used for longest until compiled models take at most `most_bytes`.

    Other files in the cache stay, a GPU's compiled kernels among them.
    """
    found = []
    for file in cache.glob("*/*.blob"):
        if not file.stem.isdecimal():  # OpenVINO's are numbers
            continue
        try:
            status = file.stat()
        except FileNotFoundError:
            continue  # another process was quicker
        found.append((status.st_mtime, status.st_size, file))
    left = sum(size for _, size, _ in found)
    for used, size, file in sorted(found):
        if left <= most_bytes:
            return
        if used > _STARTED:
            _log.warning(
                "%s holds no more than %.1f GB, too little for the models of this one run, which "
                "will be compiled again: raise --cache-size.",
                cache,
                most_bytes / 1e9,
            )
        try:
            file.unlink(missing_ok=True)
        except OSError as fault:  # in use, on Windows
            _log.info("%s cannot be deleted: %s", file, fault)
            continue
        left -= size
