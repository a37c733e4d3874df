"""CLIP maximum mean discrepancy between the pictures of both sides.

Jayasumana et al., "Rethinking FID" (arXiv:2401.09603): unlike FID it assumes no normal
distribution and is usable with few pictures.
"""

from typing import Any

import numpy as np

from sdcompress.evaluate.clip_similarity import unit
from sdcompress.evaluate.metrics import Metric

Array = np.ndarray[Any, Any]

_SIGMA = 10.0  # bandwidth and scale as in the paper
_SCALE = 1000.0


def metric(scorer: str) -> Metric:
    """The metric's card for a scorer."""
    return Metric(
        name="cmmd",
        title="CMMD",
        kind="set",
        better="lower",
        unit="",
        definition="1000 x the squared maximum mean discrepancy of the CLIP embeddings, scaled to "
        "length 1, of all pictures of both sides, Gaussian kernel of bandwidth 10 "
        "(arXiv:2401.09603, whose estimator includes each picture with itself); 0 for equal sets. "
        "Comparable only for the same CLIP model",
        low=0.0,
        high=None,
        made_by=scorer,
        digits=4,
    )


def cmmd(baseline: Array, candidate: Array) -> float:
    """The distance of two sets of CLIP embeddings, float [n, d] each."""
    before, after = unit(baseline), unit(candidate)
    within = _kernel(before, before).mean() + _kernel(after, after).mean()
    # Rounding may put equal sets a hair below zero.
    return max(0.0, float(_SCALE * (within - 2 * _kernel(before, after).mean())))


def _kernel(one: Array, other: Array) -> Array:
    squares = (one**2).sum(-1)[:, None] + (other**2).sum(-1)[None] - 2 * one @ other.T
    return np.asarray(np.exp(-squares / (2 * _SIGMA**2)))
