"""Whether a folder may be opened: its files against its manifest, hashes once for each copy."""

import hashlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from sdcompress.runtime.errors import InputError
from sdcompress.runtime.layout import COMPONENTS
from sdcompress.runtime.manifest import FILE_NAME as MANIFEST
from sdcompress.runtime.manifest import (
    Manifest,
    inside,
    listed_problems,
    read_manifest,
    refuse,
    size_problem,
)

CHOICES = ("once", "always", "never")
_PARTS = {*COMPONENTS, "tiny_decoder", "vae_encoder"}
_READ = {*_PARTS, "scheduler", "tokenizer", "model_index.json"}
_log = logging.getLogger(__name__)


def require_intact(folder: Path, when: str = "once") -> None:
    """Raise BundleError unless the files that will be read are those that the manifest lists.

    Paths and sizes are compared at every opening. Hashes are compared at the first, and again when
    a file's size or time has changed, or `when` is "always"; "never" leaves them alone. A folder
    without a manifest, such as another tool's export, is opened with a warning.
    """
    if when not in CHOICES:
        raise InputError(f"verify is {when!r}; it must be one of {', '.join(CHOICES)}.")
    if not (folder / MANIFEST).exists():
        if when != "never":
            _log.warning(
                "%s has no %s: nothing in it was verified, and the usual settings apply.",
                folder,
                MANIFEST,
            )
        return
    manifest = read_manifest(folder)
    told = f"{folder} is not as its manifest says; copy or build it again"
    refuse(told, [*_quick_problems(folder, manifest)])
    if when == "never":
        return
    mark = cache_folder() / "verified" / _stamp(folder, manifest)
    if when == "once" and mark.is_file():
        return
    refuse(told, listed_problems(folder, manifest))
    try:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    except OSError as fault:
        _log.info("That %s was verified cannot be remembered: %s", folder, fault)


def cache_folder() -> Path:
    """Where this user's caches are; the environment variable SDCOMPRESS_CACHE names another."""
    named = os.environ.get("SDCOMPRESS_CACHE")
    if named:
        return Path(named)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local") / "sdcompress"
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/sdcompress"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sdcompress"


def _quick_problems(folder: Path, manifest: Manifest) -> Iterator[str]:
    for name, record in manifest.files.items():
        problem = size_problem(folder, name, record)
        if problem is not None:
            yield problem
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name.split("/")[0] in _READ and name not in manifest.files:
            yield f"{name}: not listed in the manifest, yet it would be read"


def _stamp(folder: Path, manifest: Manifest) -> str:
    """A name for this copy as it is now: the manifest, and each file's size and time."""
    digest = hashlib.sha256(str(folder.resolve()).encode())
    digest.update((folder / MANIFEST).read_bytes())
    for name in sorted(manifest.files):
        path = inside(folder, name)
        if path is not None:
            status = path.stat()
            # The change time and the file's number notice what sets the modification time back.
            here = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
            digest.update(f"{name} {here}\n".encode())
    return digest.hexdigest()
