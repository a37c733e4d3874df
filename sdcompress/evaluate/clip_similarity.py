"""How alike CLIP finds the two pictures of a pair, whatever their prompt."""

from typing import Any

import numpy as np

from sdcompress.evaluate.metrics import Metric

Array = np.ndarray[Any, Any]


def metric(scorer: str) -> Metric:
    """The metric's card for a scorer."""
    return Metric(
        name="clip_similarity",
        title="CLIP similarity",
        kind="pair",
        better="higher",
        unit="",
        definition="cosine between the CLIP embeddings of the two pictures: the content, not the "
        "pixels; 1 for identical pictures",
        low=-1.0,
        high=1.0,
        made_by=scorer,
        digits=4,
    )


def clip_similarities(baseline: Array, candidate: Array) -> Array:
    """Cosines of embeddings float [n, d] with those of the other side, float64 [n]."""
    before, after = (_unit(np.asarray(one, np.float64)) for one in (baseline, candidate))
    cosines: Array = np.clip((before * after).sum(-1), -1.0, 1.0)
    return cosines


def _unit(vectors: Array) -> Array:
    lengths: Array = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / lengths
