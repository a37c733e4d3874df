"""Finished stages on disk, keyed by the hash of what went into them.

A stage writes to a temporary folder that is renamed into place when complete, so an entry either
exists whole or not at all, whatever kills the process. An entry is reused only when the hash of
its inputs matches, never because a file happens to exist.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from sdcompress.progress import Advance, Progress

T = TypeVar("T")
_KEY_LENGTH = 16
_RECORD = "record.json"


@dataclass(frozen=True)
class Store:
    """A folder of finished stages. `scratch` is this run's own; it is emptied when it starts.

    A fresh store rebuilds every entry once, instead of reusing those of earlier runs.
    """

    folder: Path
    scratch: Path
    fresh: bool = False
    built: set[Path] = field(default_factory=set)

    @classmethod
    def open(cls, folder: Path, run: str, *, fresh: bool = False) -> "Store":
        """Opens the store and clears what an earlier, killed run of the same name left behind."""
        scratch = folder / "scratch" / run
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        return cls(folder, scratch, fresh)

    def stage(
        self,
        progress: Progress,
        name: str,
        key: str,
        detail: str,
        build: Callable[[Path, Advance], None],
    ) -> Path:
        """Returns the finished stage's folder, after building it when it is not there.

        `build(folder, advance)` writes into an empty folder, which becomes the entry when it
        returns without a fault.
        """
        entry = self.folder / f"{name}-{key}"
        if entry.is_dir() and (not self.fresh or entry in self.built):
            progress.reused(name, detail)
            return entry
        temporary = self.scratch / entry.name
        temporary.mkdir()
        try:
            with progress.stage(name, detail) as advance:
                build(temporary, advance)
            if self.fresh and entry.exists():
                # A neighbouring run may be reading it: the name is missing for a moment only.
                entry.rename(temporary.with_suffix(".replaced"))
            _move(temporary, entry)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self.built.add(entry)
        return entry

    def record(
        self,
        progress: Progress,
        name: str,
        key: str,
        detail: str,
        kind: type[T],
        measure: Callable[[Advance], T],
    ) -> T:
        """Returns a stage whose result is one record, kept as JSON."""

        def build(folder: Path, advance: Advance) -> None:
            write_record(folder / _RECORD, kind, measure(advance))

        return read_record(self.stage(progress, name, key, detail, build) / _RECORD, kind)

    def close(self) -> None:
        """Removes this run's scratch folder."""
        shutil.rmtree(self.scratch, ignore_errors=True)


def key_of(**inputs: Any) -> str:
    """Hashes a stage's inputs, given as plain JSON types, together with this package's code."""
    text = json.dumps({"code": code_digest(), **inputs}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_KEY_LENGTH]


@cache
def code_digest() -> str:
    """Returns a hash of the package's source, so that new code never reuses old results."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        if "demo" not in file.relative_to(root).parts:
            digest.update(file.relative_to(root).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()


def write_record(file: Path, kind: type[T], record: T) -> None:
    """Writes a frozen dataclass as JSON."""
    file.write_bytes(TypeAdapter(kind).dump_json(record, indent=1))


def read_record(file: Path, kind: type[T]) -> T:
    """Reads a frozen dataclass written by `write_record`."""
    return TypeAdapter(kind).validate_json(file.read_bytes())


def _move(temporary: Path, target: Path) -> None:
    try:
        temporary.rename(target)
    except OSError:
        if not target.is_dir():  # otherwise another run finished the same stage first
            raise
