"""What other runtimes make of a bundle: openvino-genai and optimum-intel."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from sdcompress.errors import BundleError, InputError
from sdcompress.runtime import hash_files, read_manifest, verify, write_manifest
from sdcompress.runtime.layout import read_json
from sdcompress.runtime.manifest import FILE_NAME as MANIFEST
from sdcompress.runtime.manifest import SIGNATURE
from sdcompress.runtime.schedulers import DIFFUSERS_CLASSES, SCHEDULERS, class_of

SETTINGS = "scheduler/scheduler_config.json"
INDEX = "model_index.json"

# What openvino-genai 2026.4 has; optimum-intel has every scheduler of diffusers.
GENAI = (
    "DDIMScheduler",
    "PNDMScheduler",
    "LMSDiscreteScheduler",
    "LCMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
)


def describe_peers(folder: Path) -> Iterator[str]:
    """One line for each peer; none for a single IR."""
    if not (folder / SETTINGS).is_file():
        return
    name = str(read_json(folder / SETTINGS).get("_class_name"))
    if name in GENAI:
        yield f"openvino-genai draws with {name}; optimum-intel too"
    else:
        yield (
            f"openvino-genai has no {name}; optimum-intel has. For both: "
            f"sdcompress inspect {folder} --peer-scheduler ddim"
        )
    if not (folder / MANIFEST).is_file():
        return
    own = read_manifest(folder).recipe.get("sampling", {}).get("scheduler")
    if own and class_of(own) != name:
        yield f"this runtime draws with {own}, as the bundle was evaluated"


def write_peer_scheduler(folder: Path, name: str) -> str:
    """Makes `name` the scheduler in the files that peers read, and brings the manifest up to date.

    Raises InputError for a scheduler that openvino-genai lacks, BundleError for a bundle that is
    not intact.
    """
    usable = [DIFFUSERS_CLASSES[class_name] for class_name in GENAI]
    if name not in SCHEDULERS or class_of(name) not in GENAI:
        raise InputError(f"--peer-scheduler {name}: choose one of {', '.join(usable)}")
    sealed = (folder / MANIFEST).is_file()
    problems = verify(folder) if sealed else []
    if problems:
        raise BundleError(f"{folder} is not intact:\n" + "\n".join(f"  {p}" for p in problems))
    settings, index = read_json(folder / SETTINGS), read_json(folder / INDEX)
    settings["_class_name"] = class_of(name)
    # openvino-genai refuses DDIM without it; latents must not be clipped anyway.
    settings["clip_sample"] = False
    index["scheduler"] = ["diffusers", class_of(name)]
    for file, values in ((SETTINGS, settings), (INDEX, index)):
        (folder / file).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    told = f"{folder}: peers now find {class_of(name)}"
    if not sealed:
        return told
    manifest = read_manifest(folder)
    changed = hash_files(folder, [SETTINGS, INDEX])
    write_manifest(folder, replace(manifest, files=dict(manifest.files) | changed))
    (folder / SIGNATURE).unlink(missing_ok=True)
    return told
