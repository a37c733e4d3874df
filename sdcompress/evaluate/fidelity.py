"""How close two pictures, or two arrays, are: PSNR, SSIM and SQNR."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Array = np.ndarray[Any, Any]

PSNR_CEILING_DB = 100.0
"""Identical pictures have infinite PSNR, which JSON cannot hold; 8-bit pictures that differ at all
stay far below this."""


def psnr_db(baseline: Path, candidate: Path) -> float:
    """Peak signal-to-noise ratio in dB over all pixels and channels, data range 255.

    At most `PSNR_CEILING_DB`, the value of identical pictures.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio

    before, after = _tensor(baseline), _tensor(candidate)
    if before.equal(after):
        return PSNR_CEILING_DB
    return float(peak_signal_noise_ratio(after, before, data_range=255.0))


def ssim(baseline: Path, candidate: Path) -> float:
    """Structural similarity, -1 to 1, over RGB with the 11 x 11 Gaussian window of Wang (2004)."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    before, after = _tensor(baseline), _tensor(candidate)
    return float(structural_similarity_index_measure(after, before, data_range=255.0))


def sqnr_db(reference: Array, value: Array) -> float:
    """Signal-to-quantization-noise ratio 10 log10(|reference|^2 / |reference - value|^2), in dB.

    At most `PSNR_CEILING_DB`, the value of equal arrays.
    """
    noise = float(np.square(reference - value, dtype=np.float64).sum())
    signal = float(np.square(reference, dtype=np.float64).sum())
    if noise <= signal * 10 ** (-PSNR_CEILING_DB / 10):
        return PSNR_CEILING_DB
    return 10 * float(np.log10(signal / noise))


def _tensor(file: Path) -> Any:
    """Returns a picture as float32 [1, 3, h, w], 0..255."""
    import torch

    with Image.open(file) as image:
        pixels = np.array(image.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
