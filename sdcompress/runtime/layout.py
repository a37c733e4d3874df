"""What a model folder holds, read from its configuration files. Nothing is compiled here."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdcompress.runtime.errors import BundleError, InputError

COMPONENTS = ("text_encoder", "unet", "vae_decoder")


@dataclass(frozen=True)
class ModelLayout:
    """The facts of a model folder that generation needs."""

    folder: Path
    latent_channels: int
    unet_channels: int  # more than latent_channels if the UNet takes a mask as well
    vae_scale: int  # pixels per latent cell, in each direction
    native_size: int  # pixels
    scaling_factor: float  # latents are the encoder's output times this
    scheduler: Mapping[str, Any]  # scheduler_config.json as parsed
    prediction_type: str

    def model_path(self, component: str) -> Path:
        return self.folder / component / "openvino_model.xml"

    @property
    def inpainting(self) -> bool:
        """Whether the UNet takes a mask and the masked picture beside the latents."""
        return self.unet_channels != self.latent_channels

    @property
    def can_encode(self) -> bool:
        """Whether there is an encoder, which pictures to begin with need."""
        return self.model_path("vae_encoder").is_file()

    @property
    def has_tiny_decoder(self) -> bool:
        """Whether there is a distilled decoder beside the VAE's."""
        return self.model_path("tiny_decoder").is_file()

    @property
    def scheduler_path(self) -> Path:
        return self.folder / "scheduler" / "scheduler_config.json"

    def side(self, name: str, pixels: int | None) -> int:
        """A picture's width or height, by default the native one.

        Raises InputError, which calls it `name`, for what is not made of whole latent cells.
        """
        if pixels is None:
            return self.native_size
        step = self.vae_scale
        if pixels < step or pixels % step:
            below = max(pixels // step, 1) * step
            raise InputError(
                f"{name} is {pixels}; it must be a positive multiple of {step}, such as {below} or "
                f"{below + step}."
            )
        return pixels

    def latent_shape(self, width: int | None, height: int | None) -> tuple[int, int, int, int]:
        """[1, channels, rows, columns] of a picture's latents; raises what :meth:`side` does."""
        rows, columns = self.side("height", height), self.side("width", width)
        return 1, self.latent_channels, rows // self.vae_scale, columns // self.vae_scale


def read_layout(folder: Path) -> ModelLayout:
    """Check that every needed file is there, and read the configurations."""
    _require_files(folder)
    unet = read_json(folder / "unet" / "config.json")
    vae = read_json(folder / "vae_decoder" / "config.json")
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    vae_scale = 2 ** (_levels(vae, folder / "vae_decoder" / "config.json") - 1)
    latent_channels = int(_number({"latent_channels": 4} | vae, "latent_channels", folder / "vae"))
    unet_channels = int(_number(unet, "in_channels", folder / "unet"))
    if unet_channels not in (latent_channels, 2 * latent_channels + 1):
        raise BundleError(
            f"{folder / 'unet/config.json'}: in_channels is {unet_channels}, but {latent_channels} "
            f"latent channels need {latent_channels} or, for inpainting, {2 * latent_channels + 1}."
        )
    return ModelLayout(
        folder=folder,
        latent_channels=latent_channels,
        unet_channels=unet_channels,
        vae_scale=vae_scale,
        native_size=_sample_size(unet, folder / "unet") * vae_scale,
        scaling_factor=_number(vae, "scaling_factor", folder / "vae_decoder"),
        scheduler=scheduler,
        prediction_type=str(scheduler.get("prediction_type", "epsilon")),
    )


def read_json(path: Path) -> dict[str, Any]:
    """Parse a configuration file that must hold a JSON object."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BundleError(f"{path} is missing. Build or copy the folder again.") from None
    except (OSError, ValueError, RecursionError) as fault:
        raise BundleError(
            f"{path} cannot be read ({fault}). Build or copy the folder again."
        ) from fault
    if not isinstance(values, dict):
        raise BundleError(f"{path} must hold a JSON object. Build or copy the folder again.")
    return values


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object; it appears under its name only when it is complete."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        text = json.dumps(values, indent=2, ensure_ascii=False)
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as fault:
        partial.unlink(missing_ok=True)
        raise BundleError(
            f"{path} cannot be written: {fault.strerror or fault}. Check space and permissions."
        ) from fault


def _require_files(folder: Path) -> None:
    if not folder.is_dir():
        raise BundleError(f"There is no model folder at {folder}. Check the path.")
    needed = [Path("model_index.json"), Path("scheduler/scheduler_config.json")]
    for component in COMPONENTS:
        needed += [
            Path(component) / name
            for name in ("openvino_model.xml", "openvino_model.bin", "config.json")
        ]
    missing = [path.as_posix() for path in needed if not (folder / path).is_file()]
    tokenizer = folder / "tokenizer"
    if not (tokenizer / "tokenizer.json").is_file():
        # Older folders keep the same content in two files.
        pair = [name for name in ("vocab.json", "merges.txt") if not (tokenizer / name).is_file()]
        missing += [f"tokenizer/tokenizer.json (or tokenizer/{name})" for name in pair]
    if missing:
        advice = "Build or copy the folder again; it must be an OpenVINO model folder"
        if (folder / "unet" / "diffusion_pytorch_model.safetensors").is_file():
            advice = "This is a diffusers folder; convert it to OpenVINO first"
        raise BundleError(f"{folder} is incomplete, missing: {', '.join(missing)}. {advice}.")


def _levels(config: Mapping[str, Any], path: Path) -> int:
    channels = config.get("block_out_channels")
    if not isinstance(channels, list) or not channels:
        raise BundleError(f"{path} has no block_out_channels. Build or copy the folder again.")
    return len(channels)


def _sample_size(unet: Mapping[str, Any], where: Path) -> int:
    size = unet.get("sample_size")
    if isinstance(size, list) and len(set(size)) == 1:
        size = size[0]
    if not isinstance(size, int) or size < 1:
        raise BundleError(
            f"{where / 'config.json'}: sample_size is {size!r}, but one whole number is expected: "
            "the width and height of the latents the model was trained on."
        )
    return size


def _number(config: Mapping[str, Any], key: str, where: Path) -> float:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise BundleError(
            f"{where / 'config.json'}: {key} is {value!r}, but a positive number is expected."
        )
    return value
