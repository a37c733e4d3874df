"""Decoded arrays to pictures, and pictures to PNG files."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdcompress.runtime.arrays import Float32
from sdcompress.runtime.errors import InputError


def to_pixels(decoded: Float32) -> NDArray[np.uint8]:
    """Decoder output [n, 3, h, w] in -1 to 1 -> uint8 [n, h, w, 3]."""
    unit = np.clip(decoded / 2 + 0.5, 0.0, 1.0)
    return np.round(unit * 255).astype(np.uint8).transpose(0, 2, 3, 1)


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
