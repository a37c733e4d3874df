"""A small decoder that was distilled from the VAE's: `AutoencoderTiny` of diffusers.

It turns latents into pictures in a fraction of the time, not quite as well: for previews, and for
who prefers speed.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openvino as ov

from sdcompress.errors import ConversionError, SourceError
from sdcompress.ir import IR_NAME, TINY_DECODER, writing_ir
from sdcompress.quiet import quiet_libraries
from sdcompress.recipe import DEMO
from sdcompress.source import HUB_ID, Source, digest_of, download, tensor_names
from sdcompress.widening import widen

_WEIGHTS = "diffusion_pytorch_model.safetensors"
_TRACED_CELLS = 16  # shapes are dynamic, so few cells give the same graph as many


@dataclass(frozen=True)
class TinyDecoder:
    """A located folder, pinned down: a hub's to its commit, another to its files' SHA-256."""

    id: str
    revision: str
    folder: Path

    def record(self) -> dict[str, str]:
        """As plain JSON types."""
        return {"id": self.id, "revision": self.revision}


def locate_tiny_decoder(name: str, source: Source) -> TinyDecoder:
    """Finds the decoder called `name`, which is `demo`, a folder or a hub id, for a model.

    Downloads it when it is a hub id that is not in the local cache. Raises SourceError when
    anything is missing or unreadable, or when it is made for other latents than the model's.
    """
    found = _find(name)
    if found.id == DEMO and source.id != DEMO:
        raise SourceError(f"tiny decoder '{DEMO}' goes with the model '{DEMO}', not {source.id}")
    config = _config(found.folder)
    if config.get("_class_name") != "AutoencoderTiny":
        raise SourceError(
            f"{found.folder / 'config.json'}: is of {config.get('_class_name')}; a tiny decoder is "
            "a folder of diffusers' AutoencoderTiny"
        )
    tensor_names(found.folder / _WEIGHTS)
    vae = _config(source.folder / "vae")
    for what, has, wanted in (
        ("latent channels", config.get("latent_channels", 4), vae.get("latent_channels", 4)),
        ("levels", _count(config, "num_decoder_blocks"), _count(vae, "block_out_channels")),
        ("times as wide a level", config.get("upsampling_scaling_factor", 2), 2),
    ):
        if has != wanted:
            raise SourceError(
                f"tiny decoder {name}: has {has} {what}, the VAE of {source.id} has {wanted}; it "
                "belongs to another model"
            )
    return found


def _config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SourceError(f"{file}: not readable JSON: {error}") from None
    if not isinstance(config, dict):
        raise SourceError(f"{file}: not a JSON object")
    return config


def _count(config: Mapping[str, Any], key: str) -> int | None:
    """How many values a list in the settings has; None where there is no such list."""
    values = config.get(key)
    return len(values) if isinstance(values, list) else None


def _find(name: str) -> TinyDecoder:
    if name == DEMO:
        from sdcompress.demo import TINY_DECODER_DIR

        return _in_folder(DEMO, TINY_DECODER_DIR)
    path = Path(name).expanduser()
    if path.is_dir():
        return _in_folder(str(path), path.resolve())
    if HUB_ID.match(name):
        folder = download(
            name, None, ["config.json", _WEIGHTS], "name a folder with a local copy instead"
        )
        _require_files(folder)
        return TinyDecoder(name, folder.name, folder)
    raise SourceError(
        f"tiny decoder '{name}' is neither '{DEMO}', an existing folder, nor a hub id like "
        "'owner/name'"
    )


def _in_folder(name: str, folder: Path) -> TinyDecoder:
    _require_files(folder)
    digest = digest_of(folder, ("config.json", _WEIGHTS))
    return TinyDecoder(name, f"sha256:{digest.hexdigest()}", folder)


def _require_files(folder: Path) -> None:
    for name in ("config.json", _WEIGHTS):
        if not (folder / name).is_file():
            raise SourceError(f"tiny decoder {folder}: {name} is missing")


def convert_tiny_decoder(
    decoder: TinyDecoder, folder: Path, stored: bool, on_done: Callable[[int, int], None]
) -> None:
    """Writes the decoder's IR to tiny_decoder in `folder`.

    It takes latents as the UNet has them, float32 [n, 4, h/8, w/8], and returns a picture float32
    [n, 3, h, w] in -1 to 1. With `stored`, weights keep the checkpoint's type. Raises
    ConversionError when diffusers cannot load it, or OpenVINO not convert it.
    """
    try:
        with quiet_libraries("diffusers"):
            traced = _traced(decoder, stored=stored)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConversionError(
            f"tiny decoder {decoder.folder} could not be converted: {error}. Check that diffusers' "
            "AutoencoderTiny loads it"
        ) from error
    target = folder / TINY_DECODER
    target.mkdir(parents=True)
    with writing_ir(target):
        ov.save_model(traced, target / IR_NAME, compress_to_fp16=False)
    shutil.copyfile(decoder.folder / "config.json", target / "config.json")
    on_done(1, 1)


def _traced(decoder: TinyDecoder, *, stored: bool) -> ov.Model:
    import torch
    from diffusers import AutoencoderTiny
    from safetensors import safe_open

    with safe_open(decoder.folder / _WEIGHTS, framework="numpy") as tensors:
        kinds = {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
    dtype = torch.float16 if stored and kinds == {"F16"} else torch.float32
    model: Any = AutoencoderTiny.from_pretrained(
        decoder.folder, torch_dtype=dtype, use_safetensors=True, local_files_only=True
    )
    model.eval()
    widen(model)
    scaling, decode = model.config.scaling_factor, model.decoder
    model.forward = lambda latent_sample: decode(latent_sample / scaling)
    channels = model.config.latent_channels
    traced = ov.convert_model(
        model,
        input=[ov.PartialShape([-1, channels, -1, -1])],
        example_input=torch.zeros(1, channels, _TRACED_CELLS, _TRACED_CELLS),
    )
    traced.inputs[0].get_tensor().set_names({"latent_sample"})
    traced.outputs[0].get_tensor().set_names({"sample"})
    return traced
