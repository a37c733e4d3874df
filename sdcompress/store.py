"""Finished stages on disk, keyed by the hash of what went into them.

A stage writes to a temporary folder that is renamed into place when complete, so an entry either
exists whole or not at all, whatever kills the process. Long stages keep what they have written when
they are killed, and go on from there. An entry is reused only when the hash of its inputs matches,
never because a file happens to exist.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from filelock import FileLock, Timeout
from pydantic import TypeAdapter

from sdcompress.memory import MemoryWatch
from sdcompress.progress import Advance, Progress

T = TypeVar("T")
_KEY_LENGTH = 16
_RECORD = "record.json"
_STAGE = "stage.json"


@dataclass(frozen=True)
class StageRecord:
    """A stage: how long the run took that finished it, and the most memory of its processes.

    `peak_rss_bytes` is resident memory, mapped files included, at ten samples a second.
    """

    name: str
    detail: str
    seconds: float
    peak_rss_bytes: int


@dataclass(frozen=True)
class Store:
    """A folder of finished stages. `scratch` is this run's own; it is emptied when it starts.

    A fresh store rebuilds every entry once, instead of reusing those of earlier runs.
    """

    folder: Path
    scratch: Path
    fresh: bool = False
    built: set[Path] = field(default_factory=set)
    log: list[StageRecord] = field(default_factory=list)

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
        build: Callable[[Path, Advance], str | None],
        *,
        resumable: bool = False,
    ) -> Path:
        """Returns the finished stage's folder, after building it when it is not there.

        `build(folder, advance)` writes into a folder, which becomes the entry when it returns
        without a fault. The folder is empty, or, when `resumable`, as an earlier run left it. What
        it returns is added to the detail that the log has.
        """
        entry = self.folder / f"{name}-{key}"
        if self._is_finished(entry):
            return self._reuse(entry, progress, name, detail)
        with self._resumed(entry, progress) if resumable else self._new(entry) as temporary:
            if self._is_finished(entry):  # by another run, while this one waited for it
                return self._reuse(entry, progress, name, detail)
            with progress.stage(name, detail) as advance:
                _build(name, detail, temporary / _STAGE, lambda: build(temporary, advance))
            if self.fresh and entry.exists():
                # A neighbouring run may be reading it: the name is missing for a moment only.
                entry.rename(self.scratch / f"{entry.name}.replaced")
            _move(temporary, entry)
        self.built.add(entry)
        return self._remember(entry)

    def shelf(
        self,
        progress: Progress,
        name: str,
        shelf: str,
        key: str,
        detail: str,
        files: Sequence[str],
        build: Callable[[Path, Advance], None],
    ) -> Path:
        """Returns a folder that grows, after `build(folder, advance)` added what was missing.

        `files` are the names that must be there; `build` writes each of them whole or not at all.
        """
        folder = self._shelf(shelf, key)
        record = f"{key_of(files=sorted(files))}.{_STAGE}"
        if self.holds(shelf, key, files):
            progress.reused(name, detail)
            return self._remember(folder, record)
        with self._locked(folder.name, progress):
            if self.holds(shelf, key, files):  # by another run, while this one waited for it
                progress.reused(name, detail)
                return self._remember(folder, record)
            if self.fresh and folder not in self.built:
                shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(exist_ok=True)
            with progress.stage(name, detail) as advance:
                _build(name, detail, folder / record, lambda: build(folder, advance))
        self.built.add(folder)
        return self._remember(folder, record)

    def holds(self, shelf: str, key: str, files: Sequence[str]) -> bool:
        """Tells whether `shelf` would return at once."""
        folder = self._shelf(shelf, key)
        return self._is_finished(folder) and all((folder / file).exists() for file in files)

    def _shelf(self, shelf: str, key: str) -> Path:
        return self.folder / f"{shelf}-{key}"

    def _reuse(self, entry: Path, progress: Progress, name: str, detail: str) -> Path:
        progress.reused(name, detail)
        return self._remember(entry)

    def _remember(self, entry: Path, file: str = _STAGE) -> Path:
        """Adds to the log what it took. Of a shelf filled by several runs, nobody knows."""
        if (entry / file).exists():
            record = read_record(entry / file, StageRecord)
            if record not in self.log:  # a stage may be asked for several times
                self.log.append(record)
        return entry

    def has(self, name: str, key: str) -> bool:
        """Tells whether `stage` would return at once."""
        return self.find(name, key) is not None

    def find(self, name: str, key: str) -> Path | None:
        """The folder of a finished stage; None while there is none."""
        entry = self.folder / f"{name}-{key}"
        return entry if self._is_finished(entry) else None

    def _is_finished(self, entry: Path) -> bool:
        return entry.is_dir() and (not self.fresh or entry in self.built)

    @contextmanager
    def _new(self, entry: Path) -> Iterator[Path]:
        """A folder that is gone afterwards, however the block ends."""
        temporary = self.scratch / entry.name
        temporary.mkdir()
        try:
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    @contextmanager
    def _resumed(self, entry: Path, progress: Progress) -> Iterator[Path]:
        """A folder that stays when the block fails. One run at a time works in it."""
        temporary = self.folder / "unfinished" / entry.name
        with self._locked(entry.name, progress):
            if self.fresh:
                shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True, exist_ok=True)
            yield temporary

    @contextmanager
    def _locked(self, name: str, progress: Progress) -> Iterator[None]:
        """Holds the lock of one entry; waits for another run that holds it."""
        lock = self.folder / "locks" / f"{name}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with _held(lock, lambda: progress.notice(f"another run works on {name}; waiting")):
            yield

    def record(
        self,
        progress: Progress,
        name: str,
        key: str,
        detail: str,
        kind: type[T],
        measure: Callable[[Path, Advance], T],
        *,
        resumable: bool = False,
    ) -> T:
        """Returns a stage whose result is one record, kept as JSON.

        `measure(folder, advance)` may keep in the folder what a killed run should find again.
        """

        def build(folder: Path, advance: Advance) -> None:
            write_record(folder / _RECORD, kind, measure(folder, advance))

        entry = self.stage(progress, name, key, detail, build, resumable=resumable)
        return read_record(entry / _RECORD, kind)

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
        if file.relative_to(root).parts[:2] != ("demo", "train"):
            digest.update(file.relative_to(root).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()


@contextmanager
def written_whole(file: Path) -> Iterator[BinaryIO]:
    """Opens a file for writing that appears under its name only when the block has ended well."""
    partial = file.with_name(f"{file.name}.partial")
    with partial.open("wb") as stream:
        yield stream
    partial.replace(file)


def write_record(file: Path, kind: type[T], record: T) -> None:
    """Writes a frozen dataclass, or what JSON knows, as JSON."""
    with written_whole(file) as stream:
        stream.write(TypeAdapter(kind).dump_json(record, indent=1))


def read_record(file: Path, kind: type[T]) -> T:
    """Reads what `write_record` wrote."""
    return TypeAdapter(kind).validate_json(file.read_bytes())


@contextmanager
def _held(lock: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Holds a lock inside the block; tells once that it has to wait for it."""
    guard = FileLock(lock)
    try:
        guard.acquire(timeout=0)
    except Timeout:
        on_wait()
        guard.acquire()
    try:
        yield
    finally:
        guard.release()


def _build(name: str, detail: str, file: Path, build: Callable[[], str | None]) -> None:
    """Builds a stage and writes to `file` what that took."""
    watch, start = MemoryWatch(seconds=0.1, tree=True), time.perf_counter()
    with watch.over(os.getpid()):
        found = build()
    seconds = time.perf_counter() - start
    whole = f"{detail}, {found}" if found else detail
    record = StageRecord(name, whole, seconds, watch.peak_rss_bytes)
    write_record(file, StageRecord, record)


def _move(temporary: Path, target: Path) -> None:
    try:
        temporary.rename(target)
    except OSError:
        if not target.is_dir():  # otherwise another run finished the same stage first
            raise
