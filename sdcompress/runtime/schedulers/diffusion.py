"""The samplers that follow the diffusion process itself: DDPM, DDIM, PNDM and LCM."""

import math

from sdcompress.runtime.arrays import Float32
from sdcompress.runtime.schedulers.estimate import FreshNoise, Predict, Walk, combine, split
from sdcompress.runtime.schedulers.levels import signal_and_noise
from sdcompress.runtime.schedulers.plan import Plan


def ddim(plan: Plan, x: Float32, predict: Predict, noise: FreshNoise) -> Walk:
    """Song et al. 2021, formula 12: x' = a' x0 + sqrt(s'^2 - std^2) e + std * fresh noise.

    The standard deviation is eta times that of DDPM (formula 16); 0 draws no noise.
    """
    config = plan.config
    for row in plan.rows():
        clean, e = split(config.prediction_type, x, row.sigma, predict(x, row.t))
        clean = config.clipped(clean)
        if plan.eta == 0:
            x = combine(clean, e, row.next)
        else:
            a, s = signal_and_noise(row.next)
            std = plan.eta * math.sqrt(_posterior_variance(row.sigma, row.next))
            x = clean * a + e * math.sqrt(max(s**2 - std**2, 0.0)) + noise() * std
        x = yield x


def ddpm(plan: Plan, x: Float32, predict: Predict, noise: FreshNoise) -> Walk:
    """Ho et al. 2020 (arXiv 2006.11239), formula 7, over the timesteps of the plan."""
    config = plan.config
    for row in plan.rows():
        clean, _ = split(config.prediction_type, x, row.sigma, predict(x, row.t))
        clean = config.clipped(clean)
        alpha, beta = _alpha_and_beta(row.sigma, row.next)
        s2, (a_next, s_next) = signal_and_noise(row.sigma)[1] ** 2, signal_and_noise(row.next)
        x = clean * (a_next * beta / s2) + x * (math.sqrt(alpha) * s_next**2 / s2)
        if row.t > 0:
            small = _posterior_variance(row.sigma, row.next)
            variance = beta if config.variance_type == "fixed_large" else max(small, 1e-20)
            x = x + noise() * math.sqrt(variance)
        x = yield x


def lcm(plan: Plan, x: Float32, predict: Predict, noise: FreshNoise) -> Walk:
    """Luo et al. 2023 (arXiv 2310.04378), algorithm 3: jump to the end, add noise again, repeat."""
    config, half = plan.config, 0.25  # the standard deviation of data, squared
    for call, row in enumerate(plan.rows(), start=1):
        clean, _ = split(config.prediction_type, x, row.sigma, predict(x, row.t))
        scaled = row.t * config.timestep_scaling
        skip, out = half / (scaled**2 + half), scaled / math.sqrt(scaled**2 + half)
        denoised = config.clipped(clean) * out + x * skip
        x = denoised if call == len(plan) else combine(denoised, noise(), row.next)
        x = yield x


def pndm(plan: Plan, x: Float32, predict: Predict, noise: FreshNoise) -> Walk:
    """Liu et al. 2022, linear multistep of order up to 4 over DDIM's transfer (formulas 9, 12).

    The first step is taken twice, the second time with the mean of the predictions at its two ends.
    """
    del noise
    start = x
    history: list[Float32] = []
    for call, row in enumerate(plan.rows()):
        output = predict(x, row.t)
        if call == 1:
            output = (output + history[-1]) * 0.5
            x = start
        else:
            history = [*history[-3:], output]
            output = _adams_bashforth(history)
        clean, e = split(plan.config.prediction_type, x, row.sigma, output)
        x = yield combine(clean, e, row.next)


def _alpha_and_beta(sigma: float, following: float) -> tuple[float, float]:
    """The share of variance that a step of the process keeps, and the share it replaces."""
    ratio = signal_and_noise(sigma)[0] ** 2 / signal_and_noise(following)[0] ** 2
    return ratio, 1 - ratio


def _posterior_variance(sigma: float, following: float) -> float:
    s2, s2_next = signal_and_noise(sigma)[1] ** 2, signal_and_noise(following)[1] ** 2
    return s2_next / s2 * _alpha_and_beta(sigma, following)[1]


def _adams_bashforth(history: list[Float32]) -> Float32:
    newest_first = history[::-1]
    weights = {
        1: (1.0,),
        2: (3 / 2, -1 / 2),
        3: (23 / 12, -16 / 12, 5 / 12),
        4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
    }[len(history)]
    total = newest_first[0] * weights[0]
    for output, weight in zip(newest_first[1:], weights[1:], strict=True):
        total = total + output * weight
    return total
