"""Assembles the pipeline folder that ships and puts it, with its manifest, where the user asked."""

import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sdcompress.errors import BundleError, InputError
from sdcompress.ir import IR_NAME, SHARED
from sdcompress.runtime import Manifest, hash_files, read_manifest, write_manifest
from sdcompress.runtime.manifest import FILE_NAME as MANIFEST
from sdcompress.runtime.manifest import SIGNATURE

REPORT = "report"
_TOOLS = ("sdcompress", "openvino", "nncf", "optimum-intel", "diffusers", "transformers", "torch")


def assemble(
    baseline: Path,
    components: Mapping[str, Path],
    folder: Path,
    *,
    tiny_decoder: Path | None = None,
) -> None:
    """Copies the baseline's tokenizer and scheduler and the compressed components to `folder`.

    `tiny_decoder` goes there as well, under its name.
    """
    folder.mkdir(parents=True)
    shutil.copyfile(baseline / SHARED[0], folder / SHARED[0])
    for name in SHARED[1:]:
        shutil.copytree(baseline / name, folder / name)
    for component, source in components.items():
        target = folder / component
        target.mkdir()
        for name in (IR_NAME, Path(IR_NAME).with_suffix(".bin").name, "config.json"):
            shutil.copyfile(source / name, target / name)
    if tiny_decoder:
        shutil.copytree(tiny_decoder, folder / tiny_decoder.name)


def seal(
    folder: Path, recipe: dict[str, Any], model: dict[str, Any], quality: dict[str, Any]
) -> None:
    """Writes the manifest over every file in `folder`; from then on `verify` notices changes."""
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    versions = {name: version(name) for name in _TOOLS}
    write_manifest(folder, Manifest(recipe, model, versions, quality, hash_files(folder, names)))


def require_replaceable(target: Path) -> None:
    """Raises InputError unless `target` is free, empty or entirely the result of an earlier run."""
    if target == Path.cwd():
        raise InputError(f"{target} is the current folder; choose a new one with --output")
    if not target.exists():
        return
    if not target.is_dir():
        raise InputError(f"{target} is a file; --output must be a folder")
    foreign = _foreign_file(target)
    if foreign:
        raise InputError(
            f"{target} holds {foreign}, which sdcompress did not write and would delete; "
            "choose another --output"
        )


def _foreign_file(folder: Path) -> str | None:
    """Returns a file that neither the manifest nor the report of an earlier run accounts for."""
    present = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()]
    ours: set[str] = set()
    try:
        ours = {MANIFEST, SIGNATURE, *read_manifest(folder).files}
    except BundleError:
        if (folder / REPORT / "report.json").is_file():
            ours = {name for name in present if name.startswith(f"{REPORT}/")}
    return next((name for name in present if name not in ours), None)


def publish(finished: Path, output: Path) -> None:
    """Moves a finished folder to `output`, replacing an earlier result as a whole.

    The old folder is moved aside first, so no moment shows a mixture of the two.
    """
    aside = finished.with_name(finished.name + ".replaced")
    if output.exists():
        output.rename(aside)
    finished.rename(output)
    shutil.rmtree(aside, ignore_errors=True)
