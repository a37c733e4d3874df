"""Decoded arrays to pictures, and pictures to PNG files."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from sdcompress.runtime.arrays import Float32
from sdcompress.runtime.errors import InputError

_MOST_8_BIT, _MOST_16_BIT = 255, 65535


def to_pixels(decoded: Float32) -> NDArray[np.uint8]:
    """Decoder output [n, 3, h, w] in -1 to 1 -> uint8 [n, h, w, 3]."""
    unit = np.clip(decoded / 2 + 0.5, 0.0, 1.0)
    return np.round(unit * 255).astype(np.uint8).transpose(0, 2, 3, 1)


def to_unit_range(image: Image.Image, width: int, height: int) -> Float32:
    """A picture, resized if need be -> float32 [1, 3, height, width] in -1 to 1."""
    picture = _resized(_eight_bit(image).convert("RGB"), width, height)
    pixels = np.asarray(picture, dtype=np.float32)
    unit = np.asarray(pixels / 255 * 2 - 1, dtype=np.float32)
    return unit.transpose(2, 0, 1)[None]


def binary_mask(mask: Image.Image, width: int, height: int) -> Float32:
    """A mask, resized if need be -> float32 [1, 1, height, width], 1 where it is rather white."""
    picture = _resized(_eight_bit(mask).convert("L"), width, height)
    grey = np.asarray(picture, dtype=np.float32) / 255
    return (grey >= 0.5).astype(np.float32)[None, None]


def open_image(path: Path) -> Image.Image:
    """Read a picture file, turned as its camera says. Raises InputError when it is none."""
    try:
        image = ImageOps.exif_transpose(Image.open(path))
        image.load()
    except (OSError, ValueError, Image.DecompressionBombError) as fault:
        raise InputError(f"{path} cannot be read as a picture: {fault}.") from fault
    return image


def _eight_bit(image: Image.Image) -> Image.Image:
    """Deeper greys scaled to 8 bits, which conversions of Pillow would cut off instead."""
    if image.mode == "F":
        raise InputError("Pictures of floating-point pixels have no known range; use 8 or 16 bits.")
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image, dtype=np.int64)
    if values.min() < 0 or values.max() > _MOST_16_BIT:
        raise InputError("Pictures of more than 16 bits have no known range; use 8 or 16 bits.")
    deep = image.mode != "I" or values.max() > _MOST_8_BIT
    return Image.fromarray((values // 257 if deep else values).astype(np.uint8))


def _resized(image: Image.Image, width: int, height: int) -> Image.Image:
    if image.size == (width, height):
        return image
    return image.resize((width, height), Image.Resampling.LANCZOS)


def save_png(image: Image.Image, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a 24-bit RGB PNG with the metadata as text chunks.

    The file appears under its name only when it is complete.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise InputError(f"Pictures are written as PNG, but {path} does not end in .png.")
    chunks = PngInfo()
    for key, value in metadata.items():
        # International text takes any prompt; the older chunk type takes Latin-1 only.
        chunks.add_itxt(key, value)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        image.convert("RGB").save(partial, format="PNG", pnginfo=chunks)
        partial.replace(path)
    except OSError as fault:
        partial.unlink(missing_ok=True)
        raise InputError(
            f"The picture cannot be written to {path}: {fault.strerror or fault}. "
            "Choose a folder that exists, is writable and has space."
        ) from fault
