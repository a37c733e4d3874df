"""A bundle as one file: a ZIP archive, the same bytes for the same bundle, unpacked with care."""

import hashlib
import json
import os
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import IO

from sdcompress.runtime.errors import BundleError, InputError
from sdcompress.runtime.manifest import FILE_NAME as MANIFEST
from sdcompress.runtime.manifest import SIGNATURE, Manifest, inside, parse_manifest, require_whole

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that the format can hold
_UNIX, _READABLE = 3, 0o644 << 16  # wherever it is written
_CHUNK = 1 << 20
_MANIFEST_LIMIT = 16 << 20


def pack(folder: Path, archive: Path) -> Path:
    """Write an intact bundle as one file. Raises BundleError if it is not intact.

    Members are sorted and stored as they are, for weights do not shrink; times and permissions are
    fixed, so that equal bundles make equal files.
    """
    if archive.exists():
        raise InputError(f"{archive} exists already; choose another name.")
    if archive.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{archive} lies in the bundle itself; choose another place.")
    require_whole(folder)
    names = sorted(path.relative_to(folder).as_posix() for path in _files(folder))
    partial = archive.with_name(f".{archive.name}.{os.getpid()}.partial")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as target:
            # The manifest comes first: it says what the other members must be.
            for name in sorted(names, key=lambda name: (name != MANIFEST, name)):
                entry = zipfile.ZipInfo(name, _EPOCH)
                entry.create_system, entry.external_attr = _UNIX, _READABLE
                entry.file_size = (folder / name).stat().st_size
                with (folder / name).open("rb") as source, target.open(entry, "w") as member:
                    shutil.copyfileobj(source, member, _CHUNK)
        partial.replace(archive)
    except OSError as fault:
        raise BundleError(
            f"{archive} cannot be written: {fault.strerror or fault}. Check space and permissions."
        ) from fault
    finally:
        partial.unlink(missing_ok=True)
    return archive


def unpack(archive: Path, folder: Path) -> Path:
    """Write the bundle in `archive` to the new folder `folder`.

    Only what the manifest lists is written, only inside the folder, no more bytes than it says,
    and the folder appears only when every hash was right. Raises BundleError otherwise.
    """
    if folder.exists():
        raise InputError(f"{folder} exists already; choose a new folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        with zipfile.ZipFile(archive) as source:
            _extract(source, archive, partial)
        partial.chmod(0o755)
        partial.rename(folder)
    except (zipfile.BadZipFile, EOFError, ValueError, RuntimeError) as fault:
        raise BundleError(
            f"{archive} is damaged or no bundle archive: {fault}. Copy it again."
        ) from fault
    except OSError as fault:
        raise BundleError(f"{archive} cannot be unpacked: {fault.strerror or fault}.") from fault
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _extract(source: zipfile.ZipFile, archive: Path, folder: Path) -> None:
    entries = source.infolist()
    names = [entry.filename for entry in entries]
    manifest = _manifest_in(source, archive, names)
    wanted = {MANIFEST, *manifest.files}
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise BundleError(f"{archive} holds compressed members, which a bundle archive does not.")
    strange = sorted(set(names) - wanted - {SIGNATURE})
    missing = sorted(wanted - set(names))
    if strange or missing or len(set(names)) != len(names):
        what = [f"holds {name}, which its manifest does not list" for name in strange]
        what += [f"lacks {name}" for name in missing] or ["holds a name twice"] * (not strange)
        raise BundleError(f"{archive} {'; '.join(what)}. Copy it again.")
    for entry in entries:
        path = inside(folder, entry.filename)
        if path is None:
            raise BundleError(f"{archive}: {entry.filename!r} lies outside the bundle.")
        path.parent.mkdir(parents=True, exist_ok=True)
        record = manifest.files.get(entry.filename)
        limit = record.bytes if record else _MANIFEST_LIMIT
        with source.open(entry) as member:
            digest = _copy(member, path, limit, f"{archive}: {entry.filename}")
        if record and digest != record.sha256:
            raise BundleError(
                f"{archive}: {entry.filename}: content differs from the manifest (sha256). "
                "Copy it again."
            )


def _manifest_in(source: zipfile.ZipFile, archive: Path, names: list[str]) -> Manifest:
    if MANIFEST not in names:
        raise BundleError(f"{archive} holds no {MANIFEST}: it is not a bundle archive.")
    with source.open(MANIFEST) as member:
        text = member.read(_MANIFEST_LIMIT + 1)
    if len(text) > _MANIFEST_LIMIT:
        raise BundleError(f"{archive}: {MANIFEST} is larger than any manifest.")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as fault:
        raise BundleError(f"{archive}: {MANIFEST} cannot be read ({fault}).") from fault
    return parse_manifest(values, Path(archive.name) / MANIFEST)


def _copy(member: IO[bytes], path: Path, limit: int, where: str) -> str:
    digest, written = hashlib.sha256(), 0
    with path.open("xb") as target:
        while chunk := member.read(_CHUNK):
            written += len(chunk)
            if written > limit:
                raise BundleError(f"{where}: longer than the {limit} bytes the manifest allows.")
            digest.update(chunk)
            target.write(chunk)
    return digest.hexdigest()


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
