"""Structural similarity between the pictures of a pair (Wang et al., 2004)."""

from typing import Any

from sdcompress.evaluate.metrics import Metric

METRIC = Metric(
    name="ssim",
    title="SSIM",
    kind="pair",
    better="higher",
    unit="",
    definition="structural similarity over RGB, 11 x 11 Gaussian window of deviation 1.5, data "
    "range 255 (Wang et al., 2004); 1 for identical pictures",
    low=-1.0,
    high=1.0,
    made_by="torchmetrics",
    digits=4,
)


def ssim(baseline: Any, candidate: Any) -> float:
    """SSIM of two pictures float32 [1, 3, h, w], 0..255; -1 to 1."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    return float(structural_similarity_index_measure(candidate, baseline, data_range=255.0))
