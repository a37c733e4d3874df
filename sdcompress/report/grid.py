"""The picture grid: baseline above, compressed below, the least similar pairs first."""

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from sdcompress.evaluate.records import Sample

_CELL = 192  # pixels a picture is shown at
_PAD = 12
_LINE = 16
_CAPTION_LINES = 4
_LABEL = 96  # the column that names the rows
_INK, _FAINT, _PAPER = (20, 20, 20), (90, 90, 90), (255, 255, 255)


def draw_grid(samples: Sequence[Sample], columns: int = 6, rows: int = 2) -> Image.Image:
    """Draws up to `columns` x `rows` pairs, sorted by SSIM, each with its prompt and figures."""
    shown = sorted(samples, key=lambda sample: sample.likeness["ssim"])[: columns * rows]
    columns = min(columns, len(shown))
    bands = -(-len(shown) // columns)
    band_height = 2 * _CELL + _LINE * (_CAPTION_LINES + 1) + 3 * _PAD
    size = (_LABEL + columns * (_CELL + _PAD) + _PAD, bands * band_height + _PAD)
    canvas = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(canvas)
    for index, sample in enumerate(shown):
        column, band = index % columns, index // columns
        top = _PAD + band * band_height
        if column == 0:
            _label_rows(draw, top)
        _draw_pair(canvas, draw, sample, _LABEL + column * (_CELL + _PAD), top)
    return canvas


def _label_rows(draw: ImageDraw.ImageDraw, top: int) -> None:
    font = ImageFont.load_default(15)
    for row, name in enumerate(("baseline", "compressed")):
        middle = top + row * (_CELL + _PAD // 2) + _CELL // 2
        draw.text((_PAD // 2, middle), name, _INK, font, anchor="lm")


def _draw_pair(
    canvas: Image.Image, draw: ImageDraw.ImageDraw, sample: Sample, left: int, top: int
) -> None:
    for row, file in enumerate((sample.baseline, sample.candidate)):
        with Image.open(file) as picture:
            shown = picture.convert("RGB")
        shown.thumbnail((_CELL, _CELL), Image.Resampling.LANCZOS)
        if max(shown.size) < _CELL:
            factor = _CELL / max(shown.size)
            size = (round(shown.width * factor), round(shown.height * factor))
            shown = shown.resize(size, Image.Resampling.BICUBIC)
        place = (left, top + row * (_CELL + _PAD // 2))
        canvas.paste(shown, place)
        draw.rectangle((place[0] - 1, place[1] - 1, left + _CELL, place[1] + _CELL), outline=_FAINT)
    text_top = top + 2 * _CELL + _PAD
    likeness = sample.likeness
    figures = f"SSIM {likeness['ssim']:.3f}  PSNR {likeness['psnr_db']:.1f} dB"
    draw.text((left, text_top), figures, _FAINT, ImageFont.load_default(12))
    lines = textwrap.wrap(f"{sample.prompt} ({sample.seed})", 30, max_lines=_CAPTION_LINES)
    draw.text((left, text_top + _LINE), "\n".join(lines), _INK, ImageFont.load_default(12))
