"""Assembles the pipeline folder that ships and puts it, with its manifest, where the user asked."""

import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sdcompress.ir import IR_NAME
from sdcompress.runtime import Manifest, hash_files, write_manifest

_SHARED = ("model_index.json", "scheduler", "tokenizer")
_TOOLS = ("sdcompress", "openvino", "nncf", "optimum-intel", "diffusers", "transformers", "torch")


def assemble(baseline: Path, components: Mapping[str, Path], folder: Path) -> None:
    """Copies the baseline's tokenizer and scheduler and the compressed components to `folder`."""
    folder.mkdir(parents=True)
    shutil.copyfile(baseline / _SHARED[0], folder / _SHARED[0])
    for name in _SHARED[1:]:
        shutil.copytree(baseline / name, folder / name)
    for component, source in components.items():
        target = folder / component
        target.mkdir()
        for name in (IR_NAME, Path(IR_NAME).with_suffix(".bin").name, "config.json"):
            shutil.copyfile(source / name, target / name)


def seal(
    folder: Path, recipe: dict[str, Any], model: dict[str, Any], quality: dict[str, Any]
) -> None:
    """Writes the manifest over every file in `folder`; from then on `verify` notices changes."""
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    versions = {name: version(name) for name in _TOOLS}
    write_manifest(folder, Manifest(recipe, model, versions, quality, hash_files(folder, names)))


def publish(finished: Path, output: Path) -> None:
    """Moves a finished folder to `output`, replacing an earlier result as a whole.

    The old folder is moved aside first, so no moment shows a mixture of the two.
    """
    aside = finished.with_name(finished.name + ".replaced")
    if output.exists():
        output.rename(aside)
    finished.rename(output)
    shutil.rmtree(aside, ignore_errors=True)
