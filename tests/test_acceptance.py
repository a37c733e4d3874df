"""Acceptance against published bounds and against simulation: how often it is wrong."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdcompress.errors import EvaluationError
from sdcompress.evaluate.acceptance import (
    POWER,
    decide,
    judge_interval,
    look,
    look_counts,
    samples_needed,
    stopping_bounds,
)
from sdcompress.evaluate.records import Look
from sdcompress.evaluate.statistics import mean_interval


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [
        (-0.4, 0.1, "passed"),
        (-0.5, 0.1, "passed"),
        (-0.9, -0.6, "failed"),
        (-0.6, -0.4, "undecided"),
        (-0.6, 0.6, "undecided"),
        (float("nan"), 0.6, "failed"),
    ],
)
def test_an_interval_is_judged_by_its_ends(low: float, high: float, outcome: str) -> None:
    assert judge_interval(low, high, -0.5) == outcome


def test_as_many_samples_as_said_decide_as_often_as_said() -> None:
    random = np.random.default_rng(0)
    deviation, mean, limit = 3.0, -0.1, -0.8
    needed = samples_needed(deviation, mean - limit)
    assert needed is not None
    values = random.normal(mean, deviation, (4000, needed))
    low = values.mean(1) - 1.96 * values.std(1, ddof=1) / np.sqrt(needed)
    assert (low >= limit).mean() == pytest.approx(POWER, abs=0.03)


def test_an_open_case_says_how_many_more() -> None:
    values = np.random.default_rng(1).normal(-0.1, 3.0, 40)
    interval = mean_interval(values)
    found = decide(interval.mean, interval.low, interval.high, 40, -0.5)
    assert found.outcome == "undecided"
    assert found.more is not None
    needed = samples_needed(float(values.std(ddof=1)), float(values.mean()) + 0.5)
    assert found.more + 40 == pytest.approx(needed, rel=0.1)
    assert decide(interval.mean, interval.low, interval.high, 40, interval.mean).more is None


@given(samples=st.integers(2, 2000), count=st.integers(1, 8))
def test_looks_rise_to_all_samples(samples: int, count: int) -> None:
    found = look_counts(samples, count)
    assert list(found) == sorted(set(found))
    assert found[-1] == samples
    assert len(found) <= count
    assert found[0] >= min(16, samples)


def test_bounds_are_those_of_lan_and_demets() -> None:
    """The values for five equal looks and 5 % on two sides, as published and in use since."""
    found = stopping_bounds((0.2, 0.4, 0.6, 0.8, 1.0))
    np.testing.assert_allclose(found, [4.8769, 3.3569, 2.6803, 2.2898, 2.0310], atol=3e-3)


def test_looks_that_do_not_end_are_refused() -> None:
    with pytest.raises(EvaluationError):
        stopping_bounds((0.5, 0.4, 1.0))
    with pytest.raises(EvaluationError, match="none of the looks"):
        look("x", np.zeros(5), 0.0, 100)


@pytest.mark.parametrize("tail", [-1, 0, 1], ids=["rare losses", "normal", "rare gains"])
def test_a_loss_at_the_limit_passes_at_most_as_often_as_declared(tail: int) -> None:
    """1,000 candidates that lose exactly what is allowed, each stopped as soon as it may be."""
    random, limit, planned = np.random.default_rng(7), -0.5, 96
    passed = 0
    for _ in range(1000):
        noise = random.normal(0, 1, planned)
        if tail:
            noise = tail * (random.exponential(1.0, planned) - 1)
        passed += stopped(limit + noise, limit, planned).outcome == "passed"
    assert passed / 1000 <= 0.05


@pytest.mark.parametrize("samples", [2, 4, 8, 32])
def test_few_samples_are_no_coin_toss(samples: int) -> None:
    """A candidate exactly on the limit, without looks: hardly ever passed, hardly ever failed."""
    random = np.random.default_rng(5)
    outcomes = []
    for _ in range(400):
        found = mean_interval(random.normal(0.5, 1.0, samples), resamples=999)
        outcomes.append(judge_interval(found.low, found.high, 0.5))
    assert outcomes.count("passed") / 400 <= 0.05
    assert outcomes.count("failed") / 400 <= 0.05


def test_a_harmless_candidate_is_let_through_early() -> None:
    random, planned = np.random.default_rng(3), 200
    ends = [stopped(random.normal(0.0, 1.0, planned), -0.5, planned) for _ in range(200)]
    assert all(one.outcome == "passed" for one in ends)
    assert np.mean([one.samples for one in ends]) < 0.6 * planned


def test_repeated_intervals_hold_together() -> None:
    """However often one looks, at most 5 % of the trials ever exclude the truth."""
    random, planned, missed = np.random.default_rng(11), 100, 0
    for _ in range(1000):
        values = random.normal(0.3, 1.0, planned)
        found = [look("x", values[:count], 0.0, planned) for count in look_counts(planned)]
        missed += any(not one.low <= 0.3 <= one.high for one in found)
    assert missed / 1000 <= 0.065


def stopped(values: np.ndarray, limit: float, planned: int) -> Look:
    for count in look_counts(planned):
        found = look("x", values[:count], limit, planned)
        if found.outcome != "undecided":
            break
    return found
