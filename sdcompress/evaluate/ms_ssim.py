"""Multi-scale structural similarity between the pictures of a pair (Wang et al., 2003)."""

from typing import Any

from sdcompress.evaluate.metrics import Metric

_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the scales, from fine to coarse
_WINDOW = 11

METRIC = Metric(
    name="ms_ssim",
    title="MS-SSIM",
    kind="pair",
    better="higher",
    unit="",
    definition="structural similarity over up to five scales, each half the size of the one before "
    "(Wang et al., 2003); small pictures have fewer scales, whose weights are scaled to add up to "
    "1; 0 for opposed structures, 1 for identical pictures",
    low=0.0,
    high=1.0,
    made_by="torchmetrics",
    digits=4,
)


def ms_ssim(baseline: Any, candidate: Any) -> float:
    """MS-SSIM of two pictures float32 [1, 3, h, w], 0..255; 0 to 1."""
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    weights = _WEIGHTS[: scales(min(baseline.shape[-2:]))]
    shares = tuple(weight / sum(weights) for weight in weights)
    found = multiscale_structural_similarity_index_measure(
        candidate, baseline, data_range=255.0, betas=shares, normalize="relu"
    )
    return float(found)


def scales(side: int) -> int:
    """How many scales a picture of `side` pixels allows, by torchmetrics' rule; at least 1."""
    fitting = [n for n in range(1, len(_WEIGHTS) + 1) if side // max(1, n - 1) ** 2 >= _WINDOW]
    return max(fitting, default=1)
