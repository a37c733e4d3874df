"""Paired statistics: how sure we are of a difference measured on the same prompts and seeds."""

from typing import Any

import numpy as np

from sdcompress.errors import EvaluationError
from sdcompress.evaluate.records import Interval

Array = np.ndarray[Any, Any]


def paired_difference(
    baseline: Array,
    candidate: Array,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Mean of candidate - baseline with its bootstrap interval (BCa, Efron 1987).

    Differences that are all equal have an interval of no width. Raises EvaluationError for fewer
    than two pairs, or values that are not finite.
    """
    from scipy.stats import bootstrap

    differences = np.asarray(candidate, np.float64) - np.asarray(baseline, np.float64)
    if differences.ndim != 1 or len(differences) < 2:
        raise EvaluationError("a confidence interval needs at least two pairs")
    if not np.isfinite(differences).all():
        raise EvaluationError("scores that are not finite cannot be compared")
    mean = float(differences.mean())
    if np.ptp(differences) <= 1e-12 * max(1.0, abs(mean)):
        return Interval(mean, mean, mean)
    interval = bootstrap(
        (differences,),
        np.mean,
        confidence_level=confidence,
        n_resamples=resamples,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(mean, float(interval.low), float(interval.high))
