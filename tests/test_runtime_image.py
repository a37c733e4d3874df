"""Pictures: rounding, and PNG files with their metadata."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdcompress.runtime import InputError, save_png
from sdcompress.runtime.image import to_pixels


def test_decoder_output_is_scaled_rounded_and_clipped() -> None:
    decoded = np.array([-3.0, -1.0, 0.0, 0.999, 1.0, 3.0], np.float32).reshape(1, 1, 1, 6)
    pixels = to_pixels(np.repeat(decoded, 3, axis=1))
    assert (pixels.shape, pixels.dtype) == ((1, 1, 6, 3), np.uint8)
    assert pixels[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255, 255]


def test_a_png_is_24_bit_and_carries_its_metadata(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    metadata = {"prompt": "naïve 红色 🙂\nsecond line", "seed": "42"}
    save_png(Image.fromarray(pixels), tmp_path / "out.png", metadata)
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]
    with Image.open(tmp_path / "out.png") as loaded:
        assert (loaded.format, loaded.mode) == ("PNG", "RGB")
        np.testing.assert_array_equal(np.asarray(loaded), pixels)
        assert {key: str(value) for key, value in loaded.info.items()} == metadata


def test_other_modes_become_rgb(tmp_path: Path) -> None:
    save_png(Image.new("RGBA", (2, 2), (1, 2, 3, 0)), tmp_path / "out.png", {})
    with Image.open(tmp_path / "out.png") as loaded:
        assert loaded.mode == "RGB"


def test_unwritable_places_are_input_errors(tmp_path: Path) -> None:
    picture = Image.new("RGB", (2, 2))
    with pytest.raises(InputError, match=r"does not end in \.png"):
        save_png(picture, tmp_path / "out.jpg", {})
    with pytest.raises(InputError, match="cannot be written"):
        save_png(picture, tmp_path / "absent" / "out.png", {})
