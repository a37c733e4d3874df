"""Paired statistics: how sure we are of a difference measured on the same prompts and seeds."""

from typing import Any

import numpy as np

from sdcompress.errors import EvaluationError
from sdcompress.evaluate.records import Interval

Array = np.ndarray[Any, Any]


def mean_interval(
    values: Array, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """The mean of values float [n] with its bootstrap interval (BCa, Efron 1987).

    The bootstrap knows only what was drawn, so its interval of few samples is too narrow: neither
    end lies further in than Student's t puts it. Values that are all equal have an interval of no
    width. Raises EvaluationError for fewer than two values, or values that are not finite.
    """
    from scipy.stats import bootstrap, t

    values = np.asarray(values, np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise EvaluationError("a confidence interval needs at least two samples")
    if not np.isfinite(values).all():
        raise EvaluationError("scores that are not finite cannot be compared")
    mean = float(values.mean())
    if np.ptp(values) <= 1e-12 * max(1.0, abs(mean)):
        return Interval(mean, mean, mean)
    half = float(t.isf((1 - confidence) / 2, len(values) - 1) * values.std(ddof=1))
    half /= len(values) ** 0.5
    interval = bootstrap(
        (values,),
        np.mean,
        confidence_level=confidence,
        n_resamples=resamples,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    # The bootstrap of two or three values may have no ends at all.
    low, high = np.fmin(interval.low, mean - half), np.fmax(interval.high, mean + half)
    return Interval(mean, float(low), float(high))
