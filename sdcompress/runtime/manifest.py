"""The manifest of a bundle: what is in it, where it came from, and whether it is unaltered."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

from sdcompress.runtime.errors import BundleError
from sdcompress.runtime.layout import read_json, write_json

SCHEMA = 1
FILE_NAME = "manifest.json"
SIGNATURE = "manifest.sig"

_LONGEST_NAME = 200
_WINDOWS_DEVICES = {"CON", "PRN", "AUX", "NUL"} | {
    f"{port}{number}" for port in ("COM", "LPT") for number in range(10)
}


@dataclass(frozen=True)
class FileRecord:
    """A file's content in brief."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json; `files` maps POSIX paths inside the folder to records."""

    recipe: dict[str, Any]
    model: dict[str, Any]
    versions: dict[str, str]
    quality: dict[str, Any]
    files: dict[str, FileRecord]
    schema: int = SCHEMA


def write_manifest(folder: Path, manifest: Manifest) -> Path:
    """Write manifest.json; it appears only when it is complete."""
    path = folder / FILE_NAME
    ordered = {"schema": manifest.schema} | asdict(manifest)
    ordered["files"] = dict(sorted(ordered["files"].items()))
    write_json(path, ordered)
    return path


def read_manifest(folder: Path) -> Manifest:
    """Read and check manifest.json."""
    path = folder / FILE_NAME
    return parse_manifest(read_json(path), path)


def parse_manifest(values: Any, path: Path) -> Manifest:
    """Check the parsed content of a manifest.json found at `path`."""
    if not isinstance(values, dict):
        raise BundleError(f"{path} must hold a JSON object. Build or copy the bundle again.")
    if values.get("schema") != SCHEMA:
        raise BundleError(
            f"{path} has schema {values.get('schema')!r}, but this version reads schema {SCHEMA}. "
            "Use the version of sdcompress that wrote the bundle, or build the bundle again."
        )
    expected = {field.name for field in fields(Manifest)}
    if set(values) != expected or not all(
        isinstance(values[name], dict) for name in expected - {"schema"}
    ):
        raise BundleError(
            f"{path} must hold exactly {', '.join(sorted(expected))}, as objects. "
            "Build or copy the bundle again."
        )
    files = {name: _file_record(record, name, path) for name, record in values["files"].items()}
    return Manifest(**(values | {"files": files}))


def sha256_of(file: Path) -> str:
    """Returns the hex SHA-256 of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hash_files(folder: Path, names: Iterable[str]) -> dict[str, FileRecord]:
    """Records of the named files (POSIX paths inside the folder)."""
    records = {}
    for name in names:
        path = inside(folder, name)
        if path is None:
            raise BundleError(f"{name!r} is not a path inside {folder}.")
        try:
            records[name] = FileRecord(sha256_of(path), path.stat().st_size)
        except OSError as fault:
            raise BundleError(f"{path} cannot be read: {fault.strerror or fault}.") from fault
    return records


def verify(folder: Path) -> list[str]:
    """Compare the folder with its manifest; one sentence for each problem, none if intact."""
    manifest = read_manifest(folder)
    problems = listed_problems(folder, manifest)
    listed = set(manifest.files) | {FILE_NAME, SIGNATURE}
    present = (path for path in sorted(folder.rglob("*")) if path.is_file() or path.is_symlink())
    names = (path.relative_to(folder).as_posix() for path in present)
    problems += [f"{name}: not listed in the manifest" for name in names if name not in listed]
    return problems


def require_whole(folder: Path) -> None:
    """Raise BundleError unless the folder holds what its manifest lists, and nothing else."""
    refuse(f"{folder} is not intact", verify(folder))


def refuse(what: str, problems: Sequence[str]) -> None:
    """Raise BundleError that lists the problems, if there are any."""
    if problems:
        raise BundleError(f"{what}:\n" + "\n".join(f"  {problem}" for problem in problems))


def listed_problems(folder: Path, manifest: Manifest) -> list[str]:
    """What is wrong with the files that the manifest lists, their hashes compared."""
    problems = (_problem(folder, name, record) for name, record in manifest.files.items())
    return [problem for problem in problems if problem is not None]


def size_problem(folder: Path, name: str, record: FileRecord) -> str | None:
    """What is wrong with a listed file at first sight, None if nothing."""
    path = inside(folder, name)
    if path is None:
        return f"{name}: lies outside the bundle"
    if not path.is_file():
        return f"{name}: missing"
    size = path.stat().st_size
    if size != record.bytes:
        return f"{name}: {size} bytes, but the manifest says {record.bytes}"
    return None


def _problem(folder: Path, name: str, record: FileRecord) -> str | None:
    problem = size_problem(folder, name, record)
    if problem is None and hash_files(folder, [name])[name] != record:
        return f"{name}: content differs from the manifest (sha256)"
    return problem


def inside(folder: Path, name: str) -> Path | None:
    """The path of a listed file, or None if it would leave the folder, be it through a link.

    Names that Windows takes for something else are refused on every system.
    """
    listed = PurePosixPath(name)
    if not name or listed.is_absolute() or len(name) > _LONGEST_NAME:
        return None
    if any(not _is_plain(part) for part in listed.parts):
        return None
    path = folder.joinpath(*listed.parts)
    try:
        return path if path.resolve().is_relative_to(folder.resolve()) else None
    except (OSError, RuntimeError):  # a loop of links
        return None


def _is_plain(part: str) -> bool:
    stem = part.split(".", maxsplit=1)[0].rstrip(" ").upper()
    return (
        part != ".."
        and part.isprintable()
        and not set(part) & set('\\:*?"<>|')
        and part[-1] not in ". "
        and stem not in _WINDOWS_DEVICES
    )


def _file_record(record: Any, name: str, path: Path) -> FileRecord:
    if (
        isinstance(record, Mapping)
        and set(record) == {"sha256", "bytes"}
        and isinstance(record["sha256"], str)
        and type(record["bytes"]) is int
    ):
        return FileRecord(record["sha256"], record["bytes"])
    raise BundleError(
        f"{path}: the record of {name} must hold sha256 and bytes. Build or copy the bundle again."
    )
