"""What other runtimes make of a bundle: openvino-genai and optimum-intel."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from sdcompress.errors import InputError
from sdcompress.runtime import hash_files, read_manifest, write_manifest
from sdcompress.runtime.layout import read_json, write_json
from sdcompress.runtime.manifest import FILE_NAME as MANIFEST
from sdcompress.runtime.manifest import SIGNATURE, require_whole
from sdcompress.runtime.schedulers import DIFFUSERS_CLASSES, SCHEDULERS, class_of
from sdcompress.runtime.settings import bundled_settings

SETTINGS = "scheduler/scheduler_config.json"
INDEX = "model_index.json"

# What openvino-genai 2026.4 has; optimum-intel has every scheduler of diffusers.
# Its LMS is left out, for it draws other pictures than diffusers' from the same latents.
GENAI = (
    "DDIMScheduler",
    "PNDMScheduler",
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
    elif name == "LMSDiscreteScheduler":
        yield f"openvino-genai's {name} draws other pictures than optimum-intel's"
    else:
        yield (
            f"openvino-genai has no {name}; optimum-intel has. For both: "
            f"sdcompress inspect {folder} --peer-scheduler ddim"
        )
    if not (folder / MANIFEST).is_file():
        return
    own = bundled_settings(folder).scheduler
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
    if sealed:
        require_whole(folder)
    settings, index = read_json(folder / SETTINGS), read_json(folder / INDEX)
    if settings.get("clip_sample"):
        raise InputError(f"{folder / SETTINGS} asks for clipped samples, which peers do not draw")
    settings["_class_name"] = class_of(name)
    # openvino-genai refuses DDIM, and this runtime PNDM, unless the file says these.
    settings |= {"clip_sample": False, "skip_prk_steps": True}
    index["scheduler"] = ["diffusers", class_of(name)]
    for file, values in ((SETTINGS, settings), (INDEX, index)):
        write_json(folder / file, values)
    told = f"{folder}: peers now find {class_of(name)}"
    if not sealed:
        return told
    manifest = read_manifest(folder)
    changed = hash_files(folder, [SETTINGS, INDEX])
    write_manifest(folder, replace(manifest, files=dict(manifest.files) | changed))
    if (folder / SIGNATURE).exists():
        (folder / SIGNATURE).unlink()
        return f"{told}; its signature is gone, sign it again"
    return told
