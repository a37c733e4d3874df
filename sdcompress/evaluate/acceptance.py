"""Decides from samples whether a loss stays within a band that was declared before.

Non-inferiority with three outcomes: the loss is shown to stay within the band, it is shown to leave
it, or the samples do not tell yet. Each side is a one-sided test at half of `ALPHA`, so the outcome
agrees with the two-sided 95 % interval that the report shows.

Looking at the figures while they come in and stopping when they please would let luck decide. A
sequential evaluation may look a few times nevertheless, because each look gets only a part of the
error rate: O'Brien and Fleming's spending function as of Lan and DeMets (Biometrika 70, 1983), with
the bounds from the joint normal distribution of the looks. Its intervals are repeated confidence
intervals (Jennison and Turnbull, 1989): all of them hold together, whichever look is the last.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from sdcompress.errors import EvaluationError
from sdcompress.evaluate.records import Look, Outcome

Array = np.ndarray[Any, Any]
ALPHA = 0.05  # of both sides together
POWER = 0.8
_MOST_SAMPLES = 100_000  # more than anybody draws: the mean lies on the band's edge


@dataclass(frozen=True)
class Decision:
    """An outcome, and about how many more samples would decide when it is open.

    `more` is None when it is decided, and when no number of samples that anybody draws would do.
    """

    outcome: Outcome
    more: int | None


def judge_interval(low: float, high: float, limit: float) -> Outcome:
    """Tells on which side of `limit` an interval lies: above or on it passes, below fails.

    Values that are not finite fail.
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        return "failed"
    if low >= limit:
        return "passed"
    return "failed" if high < limit else "undecided"


def decide(mean: float, low: float, high: float, samples: int, limit: float) -> Decision:
    """Judges a mean by its two-sided 95 % interval from so many samples: at least `limit`?"""
    from scipy.stats import t

    outcome = judge_interval(low, high, limit)
    if outcome != "undecided":
        return Decision(outcome, None)
    deviation = (high - low) / 2 / float(t.isf(ALPHA / 2, samples - 1)) * math.sqrt(samples)
    needed = samples_needed(deviation, mean - limit)
    return Decision(outcome, None if needed is None else max(needed - samples, 1))


def samples_needed(deviation: float, distance: float) -> int | None:
    """About how many samples decide, with a chance of `POWER`, if the mean stays where it is.

    `distance` is the mean's from the limit, in the unit of the samples' standard deviation
    `deviation`. Normal approximation; None for more than anybody draws.
    """
    if distance == 0:
        return None
    factor = _quantile(1 - ALPHA / 2) + _quantile(POWER)
    needed = math.ceil((factor * deviation / distance) ** 2)
    return needed if needed <= _MOST_SAMPLES else None


def look_counts(samples: int, count: int = 5, least: int = 16) -> tuple[int, ...]:
    """After how many of `samples` a sequential evaluation looks: at most `count` times.

    The first look has at least `least` samples, below which the mean is far from normal.
    """
    wanted = (math.ceil(samples * (index + 1) / count) for index in range(count))
    return tuple(dict.fromkeys(max(one, min(least, samples)) for one in wanted))


@cache
def stopping_bounds(shares: tuple[float, ...], alpha: float = ALPHA / 2) -> tuple[float, ...]:
    """One-sided bounds for the test statistic at looks after these shares of the samples.

    `shares` rise to 1. The chance that a standard normal walk crosses a bound at any of the looks
    is `alpha`, of which 2 - 2 Phi(z / sqrt(share)) is spent until each.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    if list(shares) != sorted(set(shares)) or not shares or shares[-1] != 1 or shares[0] <= 0:
        raise EvaluationError(f"looks after shares {shares} of the samples do not rise to 1")
    edge = norm.ppf(1 - alpha / 2)
    spent = [2 - 2 * float(norm.cdf(edge / math.sqrt(share))) for share in shares]
    bounds: list[float] = []
    for index in range(len(shares)):
        kept = shares[: index + 1]

        def missing(bound: float, kept: tuple[float, ...] = kept, index: int = index) -> float:
            return 1 - _chance_below(kept, (*bounds, bound)) - spent[index]

        bounds.append(float(brentq(missing, 1.0, 12.0, xtol=1e-4)))
    return tuple(bounds)


def _chance_below(shares: Sequence[float], bounds: Sequence[float]) -> float:
    """The chance that a normal walk, standardized at each look, stays below all bounds."""
    from scipy.stats import multivariate_normal, norm

    if len(shares) == 1:
        return float(norm.cdf(bounds[0]))
    times = np.array(shares)
    correlation = np.sqrt(np.minimum.outer(times, times) / np.maximum.outer(times, times))
    chance = multivariate_normal.cdf(
        np.array(bounds), cov=correlation, rng=np.random.default_rng(0), abseps=1e-6
    )
    return float(chance)


def look(budget: str, values: Array, limit: float, planned: int) -> Look:
    """Judges whether the mean is at least `limit` by the first of `planned` samples, float [n].

    n must be one of the `look_counts`. The bound is brought to Student's t by its tail's chance, so
    that few samples are not taken for certain, and from there to skewed samples by Hall's cubic
    transformation (J. R. Stat. Soc. B 54, 1992): losses of pictures are often rare and large, which
    a symmetric interval would underrate.
    """
    from scipy.stats import norm, skew, t

    count, counts = len(values), look_counts(planned)
    if count not in counts:
        raise EvaluationError(f"{count} of {planned} samples is none of the looks {counts}")
    bound = stopping_bounds(tuple(one / planned for one in counts))[counts.index(count)]
    mean = float(np.mean(values))
    error = float(np.std(values, ddof=1)) / math.sqrt(count)
    skewness = float(skew(values)) if error else 0.0
    quantile = float(t.isf(norm.sf(bound), count - 1))
    low = mean - _skewed(quantile, skewness, count) * error
    high = mean - _skewed(-quantile, skewness, count) * error
    return Look(budget, count, mean, low, high, judge_interval(low, high, limit))


def _skewed(quantile: float, skewness: float, count: int) -> float:
    """The inverse of Hall's transformation, which makes the statistic of skewed samples normal."""
    if abs(skewness) < 1e-9:
        return quantile
    root = math.sqrt(count)
    inner = 1 + skewness * (quantile / root - skewness / (6 * count))
    return 3 * root / skewness * (float(np.cbrt(inner)) - 1)


def _quantile(share: float) -> float:
    from scipy.stats import norm

    return float(norm.ppf(share))
