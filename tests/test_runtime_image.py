"""Pictures: rounding, and PNG files with their metadata."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdcompress.runtime import InputError, open_image, save_png
from sdcompress.runtime.image import binary_mask, to_pixels, to_unit_range


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


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "I;16"])
def test_grey_is_grey_whatever_the_file_holds(tmp_path: Path, mode: str) -> None:
    grey = 255 if mode == "1" else 128
    if mode == "I;16":
        picture = Image.fromarray(np.full((8, 8), grey * 257, np.uint16))
    else:
        picture = Image.new("L", (8, 8), grey).convert(mode)
    picture.save(tmp_path / "grey.png")
    unit = to_unit_range(open_image(tmp_path / "grey.png"), 8, 8)
    assert (unit.shape, unit.dtype) == ((1, 3, 8, 8), np.float32)
    np.testing.assert_allclose(unit, grey / 255 * 2 - 1, atol=0.01)


def test_masks_are_cut_at_half_whatever_their_depth() -> None:
    for values in (np.array([[0, 127, 128, 255]], np.uint8), np.array([[0, 32000, 40000, 65535]])):
        mask = Image.fromarray(values.astype(np.uint8 if values.max() < 256 else np.uint16))
        assert binary_mask(mask, 4, 1)[0, 0, 0].tolist() == [0, 0, 1, 1]


def test_pictures_are_turned_as_their_camera_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (16, 8)).save(tmp_path / "photo.jpg", exif=exif)
    assert open_image(tmp_path / "photo.jpg").size == (8, 16)


def test_pixels_without_a_known_range_are_refused() -> None:
    with pytest.raises(InputError, match="floating-point"):
        to_unit_range(Image.new("F", (8, 8)), 8, 8)
    with pytest.raises(InputError, match="more than 16 bits"):
        to_unit_range(Image.fromarray(np.full((8, 8), 70_000, np.int32)), 8, 8)
