"""Samplers of the ordinary differential equation dx / dsigma = (x - x0) / sigma.

Here x is x0 + sigma * e (Karras et al. 2022, arXiv 2206.00364); the network gets x / sqrt(sigma^2
+ 1), which is the sample it was trained on.
"""

import math

import numpy as np
from numpy.polynomial import Polynomial

from sdcompress.runtime.arrays import Float32
from sdcompress.runtime.schedulers.estimate import FreshNoise, Predict, Walk, split
from sdcompress.runtime.schedulers.plan import Plan, Row

_LMS_ORDER = 4


def euler(plan: Plan, x: Float32, predict: Predict, noise: FreshNoise) -> Walk:
    """Karras et al. 2022, algorithm 1 without churn and without its second half."""
    del noise
    for row in plan.rows():
        x = yield x + _slope(plan, x, row, predict) * (row.next - row.sigma)


def euler_ancestral(plan: Plan, x: Float32, predict: Predict, noise: FreshNoise) -> Walk:
    """Steps below the next level and returns to it with fresh noise, as DDPM does at eta = 1."""
    for row in plan.rows():
        up = math.sqrt(row.next**2 * (row.sigma**2 - row.next**2) / row.sigma**2)
        down = math.sqrt(row.next**2 - up**2)
        x = x + _slope(plan, x, row, predict) * (down - row.sigma)
        x = yield x + noise() * up


def heun(plan: Plan, x: Float32, predict: Predict, noise: FreshNoise) -> Walk:
    """Karras et al. 2022, algorithm 1 without churn: Euler's step, retaken with the mean slope."""
    del noise
    start, first = x, None  # of the step under way: its latents and its first slope
    for row in plan.rows():
        slope = _slope(plan, x, row, predict)
        if first is None:
            start, first = x, slope
        else:
            x, slope, first = start, (first + slope) * 0.5, None
        x = yield x + slope * (row.next - row.sigma)


def lms(plan: Plan, x: Float32, predict: Predict, noise: FreshNoise) -> Walk:
    """Linear multistep: the slope's interpolating polynomial through up to 4 calls, integrated."""
    del noise
    slopes: list[Float32] = []
    for call, row in enumerate(plan.rows()):
        slopes = [_slope(plan, x, row, predict), *slopes[: _LMS_ORDER - 1]]
        visited = plan.sigmas[call::-1][: len(slopes)]
        weights = lagrange_integrals(visited.tolist(), row.next)
        for slope, weight in zip(slopes, weights, strict=True):
            x = x + slope * weight
        x = yield x


def lagrange_integrals(points: list[float], end: float) -> list[float]:
    """Integrals, from points[0] to `end`, of the polynomials that are 1 at one point, 0 at others.

    Computed in units of the step, for accuracy.
    """
    step = end - points[0]
    places = [(point - points[0]) / step for point in points]
    weights = []
    for index, place in enumerate(places):
        others = places[:index] + places[index + 1 :]
        scale = float(np.prod([place - other for other in others]))
        basis = Polynomial.fromroots(others) if others else Polynomial([1.0])
        weights.append(float(basis.integ()(1.0)) / scale * step)
    return weights


def _slope(plan: Plan, x: Float32, row: Row, predict: Predict) -> Float32:
    """(x - x0) / sigma where the network is asked; the noise e, if nothing is clipped."""
    scaled = x / math.sqrt(row.asked**2 + 1)
    config = plan.config
    clean, _ = split(config.prediction_type, scaled, row.asked, predict(scaled, row.t))
    slope: Float32 = (x - config.clipped(clean)) / row.asked
    return slope
