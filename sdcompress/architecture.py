"""How large a located model is and how much it computes, from file headers and settings alone.

A layer's multiply-accumulates are its weights times the positions it is applied to, and the
positions follow from the resolution of the block that its name tells. Attention adds two products
of queries and keys. Normalization and activations are left out: they multiply little.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sdcompress.errors import SourceError
from sdcompress.source import PARTS, Source, StoredTensor

_TEXT_TOKENS = 77
_SHARES_OF_VAE = {"vae_decoder": 0.59, "vae_encoder": 0.41}


@dataclass(frozen=True)
class PartSize:
    """Parameters of a part and the bytes they take in the checkpoint."""

    parameters: int
    stored_bytes: int


@dataclass(frozen=True)
class Architecture:
    """Sizes, and multiply-accumulates for pictures of one size and one guidance branch.

    `unet_channels` counts the channels of everything the UNet's layers read and return.
    """

    text_encoder: PartSize
    unet: PartSize
    vae: PartSize
    text_encoder_macs: float
    unet_macs: float
    vae_decoder_macs: float
    unet_channels: int
    pixels: int

    @property
    def parts(self) -> tuple[PartSize, ...]:
        return self.text_encoder, self.unet, self.vae

    def part_of(self, component: str) -> PartSize:
        """The part that a component of the pipeline is in."""
        return {"text_encoder": self.text_encoder, "unet": self.unet}.get(component, self.vae)

    def parameters_of(self, component: str) -> float:
        """How many parameters a component has; of the VAE's halves about so many."""
        return self.part_of(component).parameters * _SHARES_OF_VAE.get(component, 1.0)


def read_architecture(source: Source, width: int | None, height: int | None) -> Architecture:
    """Reads the headers of the weight files. Size in pixels; None means the model's own."""
    tensors = {part: list(source.tensors(part)) for part in PARTS}
    unet = _config(source, "unet")
    vae = _config(source, "vae")
    scale = 2 ** (len(vae["block_out_channels"]) - 1)
    native = unet["sample_size"]
    columns, rows = (width // scale if width else native), (height // scale if height else native)
    shapes = {part: {one.name: one.shape for one in found} for part, found in tensors.items()}
    linear = (
        math.prod(shape)
        for name, shape in shapes["text_encoder"].items()
        if len(shape) == 2 and "embedding" not in name
    )
    channels = sum(shape[0] + shape[1] for shape in shapes["unet"].values() if len(shape) > 1)
    return Architecture(
        text_encoder=_part_size(tensors["text_encoder"]),
        unet=_part_size(tensors["unet"]),
        vae=_part_size(tensors["vae"]),
        text_encoder_macs=_TEXT_TOKENS * sum(linear),
        unet_macs=sum(_unet_macs(shapes["unet"], unet, columns * rows)),
        vae_decoder_macs=sum(_decoder_macs(shapes["vae"], vae, columns * rows)),
        unet_channels=channels,
        pixels=columns * rows * scale**2,
    )


def _config(source: Source, part: str) -> dict[str, Any]:
    """Reads what is asked of a part's settings, and raises SourceError for what is not there."""
    file = source.folder / part / "config.json"
    try:
        config: dict[str, Any] = json.loads(file.read_text("utf-8"))
        channels = config["block_out_channels"]
        size = config["sample_size"] if part == "unet" else 0  # nobody asks for the VAE's
        found = {
            "block_out_channels": [int(one) for one in channels],
            "layers_per_block": int(config["layers_per_block"]),
            "sample_size": int(size[0] if isinstance(size, list) else size),
        }
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise SourceError(
            f"{file}: {type(error).__name__} {error}: it has to be JSON with block_out_channels, "
            "layers_per_block and sample_size, as diffusers writes it for Stable Diffusion"
        ) from error
    return found


def _part_size(tensors: Sequence[StoredTensor]) -> PartSize:
    sizes = [(math.prod(tensor.shape), _bytes_each(tensor.kind)) for tensor in tensors]
    return PartSize(sum(count for count, _ in sizes), sum(count * each for count, each in sizes))


def _bytes_each(kind: str) -> int:
    """The size of one value: safetensors' names tell bits, as in BF16, F8_E4M3 or I64."""
    bits = re.search(r"\d+", kind)
    return int(bits[0]) // 8 if bits else 1  # BOOL


def _unet_macs(
    shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any], positions: int
) -> Iterator[float]:
    """Yields each layer's multiply-accumulates; `positions` are those of the latents."""
    blocks, layers = len(config["block_out_channels"]), config["layers_per_block"]
    for name, shape in shapes.items():
        if len(shape) < 2:
            continue
        here = positions / 4 ** _depth(name, blocks, layers)
        if "time_emb" in name or "emb_layers" in name:
            yield math.prod(shape)
        elif "attn2.to_k" in name or "attn2.to_v" in name:
            yield math.prod(shape) * _TEXT_TOKENS
        else:
            yield math.prod(shape) * here
        if name.endswith("to_q.weight"):
            keys = _TEXT_TOKENS if "attn2" in name else here
            yield 2 * here * keys * shape[0]


def _depth(name: str, blocks: int, layers: int) -> int:
    """How often the latents are halved where a layer works; a sampler works in the smaller one."""
    if name.startswith(("mid_block", "middle_block")):
        return blocks - 1
    match = re.match(r"(down|up)_blocks\.(\d+)\.(\w+)", name)
    if match:
        side, number, is_sampler = match[1], int(match[2]), "sampler" in match[3]
    else:
        match = re.match(r"(in|out)put_blocks\.(\d+)\.\d+\.(\w+)", name)
        if match is None or (match[2] == "0" and match[1] == "in"):
            return 0
        side, is_sampler = match[1], match[3] in ("op", "conv")
        number = (int(match[2]) - (side == "in")) // (layers + 1)
    if side in ("down", "in"):
        return number + is_sampler
    return blocks - 1 - number - is_sampler


def _decoder_macs(
    shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any], positions: int
) -> Iterator[float]:
    doublings = len(config["block_out_channels"]) - 1
    for name, shape in shapes.items():
        if len(shape) < 2 or not name.startswith(("decoder.", "post_quant_conv")):
            continue
        match = re.match(r"decoder\.up(_blocks)?\.(\d+)\.(\w+)", name)
        if match:  # the original layout counts from the end
            number = int(match[2]) if match[1] else doublings - int(match[2])
            doubled = number + ("sample" in match[3])
        else:
            doubled = doublings if name.startswith("decoder.conv_out") else 0
        yield math.prod(shape) * positions * 4**doubled
        if name.endswith(("to_q.weight", "attn_1.q.weight")):
            yield 2 * positions**2 * shape[0]
