"""Peak signal-to-noise ratio between the pictures of a pair."""

from typing import Any

from sdcompress.evaluate.metrics import Metric

PSNR_CEILING_DB = 100.0
"""Identical pictures have infinite PSNR, which JSON cannot hold; 8-bit pictures that differ at all
stay far below this."""

METRIC = Metric(
    name="psnr_db",
    title="PSNR",
    kind="pair",
    better="higher",
    unit="dB",
    definition="10 log10(255² / mean squared error) over all pixels and channels of the two 8-bit "
    "RGB pictures; identical pictures count as 100 dB",
    low=0.0,
    high=PSNR_CEILING_DB,
    made_by="torchmetrics",
)


def psnr_db(baseline: Any, candidate: Any) -> float:
    """PSNR in dB of two pictures float32 [1, 3, h, w], 0..255, at most `PSNR_CEILING_DB`."""
    from torchmetrics.functional.image import peak_signal_noise_ratio

    if baseline.equal(candidate):
        return PSNR_CEILING_DB
    return float(peak_signal_noise_ratio(candidate, baseline, data_range=255.0))
