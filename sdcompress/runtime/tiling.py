"""Decodes latents in overlapping tiles: a part of the memory, at the cost of what overlaps.

Every pixel is an average of the tiles that show it, weighted by its distance from their borders, so
that no seam remains. Tiles see less of the picture than the whole decoder does (its normalization
and attention look at everything), so colours may drift a little from those of the whole.
"""

from collections.abc import Callable

import numpy as np

from sdcompress.runtime.arrays import Float32

SMALLEST = 16  # latent cells a side of a tile; below, it is nearly all border
_OVERLAP = 4  # a quarter of a tile, at least, is also in the next


def decode_tiled(
    decode: Callable[[Float32], Float32], latents: Float32, tile: int, scale: int
) -> Float32:
    """Latents float32 [1, c, h, w] -> picture float32 [1, 3, h * scale, w * scale].

    `decode` does the same for tiles of `tile` cells a side, or of the whole side where that is
    shorter: all have one shape.
    """
    height, width = latents.shape[2:]
    rows, columns = min(tile, height), min(tile, width)
    total = np.zeros((1, 3, height * scale, width * scale), np.float32)
    weights = np.zeros(total.shape[2:], np.float32)
    window = np.outer(_ramp(rows * scale), _ramp(columns * scale)).astype(np.float32)
    for top in _offsets(height, rows):
        for left in _offsets(width, columns):
            part = decode(latents[:, :, top : top + rows, left : left + columns])
            place = (
                slice(top * scale, (top + rows) * scale),
                slice(left * scale, (left + columns) * scale),
            )
            total[:, :, *place] += part * window
            weights[place] += window
    total /= weights
    return total


def _offsets(whole: int, part: int) -> list[int]:
    """Where tiles begin, evenly spread, so that neighbours share enough."""
    step = part - part // _OVERLAP
    count = 1 + -(-(whole - part) // step)
    return [round(index * (whole - part) / max(count - 1, 1)) for index in range(count)]


def _ramp(length: int) -> Float32:
    """Rises from the borders over the least that neighbours share."""
    border = max(length // _OVERLAP, 1)
    rise = (np.arange(border) + 0.5) / border
    return np.concatenate([rise, np.ones(length - 2 * border), rise[::-1]]).astype(np.float32)
