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
    cosines: Array = np.clip((unit(baseline) * unit(candidate)).sum(-1), -1.0, 1.0)
    return cosines


def unit(vectors: Array) -> Array:
    """Vectors float [n, d] scaled to length 1, in float64."""
    exact = np.asarray(vectors, np.float64)
    scaled: Array = exact / np.linalg.norm(exact, axis=-1, keepdims=True)
    return scaled
