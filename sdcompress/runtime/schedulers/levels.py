"""Noise levels: how much noise the network saw at each training step, and which ones to visit."""

import math

import numpy as np

from sdcompress.runtime.arrays import Float32, Float64
from sdcompress.runtime.schedulers.config import SchedulerConfig

# Samplers that work in x0 + sigma * e cannot start at pure noise; diffusers stops just short of it.
_ALMOST_NO_SIGNAL = 2.0**-24
_ONE = np.float32(1)
_BOUNDED = {"euler", "euler_ancestral", "dpmsolver++", "sde-dpmsolver++", "unipc"}


def noise_levels(config: SchedulerConfig) -> Float64:
    """Noise-to-signal ratios sigma = sqrt((1 - alpha_bar) / alpha_bar), one per training step.

    alpha_bar is the running product of 1 - beta; the signal is scaled by sqrt(alpha_bar). The last
    level is infinite where the schedule was rescaled to end without signal. Computed in single
    precision, operation by operation as in diffusers: the last digit decides about timesteps where
    they are derived from levels.
    """
    alpha_bar = _running_product(_ONE - _betas(config))
    if config.rescale_betas_zero_snr:
        alpha_bar = _without_final_signal(alpha_bar)
        if config.scheduler in _BOUNDED:
            alpha_bar[-1] = _ALMOST_NO_SIGNAL
    with np.errstate(divide="ignore"):
        return np.asarray(np.sqrt((_ONE - alpha_bar) / alpha_bar), dtype=np.float64)


def spaced(config: SchedulerConfig, steps: int) -> Float64:
    """Timesteps, highest first (table 2 of Lin et al. 2023, arXiv 2305.08891)."""
    count = config.num_train_timesteps
    if config.timestep_spacing == "linspace":
        return np.linspace(0, count - 1, steps)[::-1]
    if config.timestep_spacing == "leading":
        whole = np.arange(steps - 1, -1, -1, dtype=np.float64) * (count // steps)
        return whole + config.steps_offset
    # Rounding of count / steps can add one item below zero at the end; it is not a step.
    return np.round(np.arange(count, 0, -count / steps, dtype=np.float64))[:steps] - 1


def respaced(config: SchedulerConfig, largest: float, smallest: float, steps: int) -> Float64:
    """Levels between two ends, even in sigma^(1/7) (Karras et al. 2022, formula 5) or log sigma."""
    if config.use_karras_sigmas:
        return np.linspace(largest ** (1 / 7), smallest ** (1 / 7), steps) ** 7
    return np.exp(np.linspace(math.log(largest), math.log(smallest), steps))


def timesteps_of(sigmas: Float64, levels: Float64) -> Float64:
    """Where among the training steps the network met these levels, interpolated in log sigma.

    The logarithms are single precision as in diffusers, which decides how ends are cut to integers.
    """
    logs = np.log(levels.astype(np.float32)).astype(np.float64)
    return np.interp(np.log(sigmas), logs, np.arange(len(levels), dtype=np.float64))


def signal_and_noise(sigma: float) -> tuple[float, float]:
    """The shares a and s of signal and noise, a^2 + s^2 = 1, at a level s / a."""
    if math.isinf(sigma):
        return 0.0, 1.0
    a = 1 / math.sqrt(1 + sigma**2)
    return a, sigma * a


def _without_final_signal(alpha_bar: Float32) -> Float32:
    """Lin et al. 2023 (arXiv 2305.08891), algorithm 1."""
    root = np.sqrt(alpha_bar)
    first, last = root[0], root[-1]
    squared = ((root - last) * (first / (first - last))) ** 2
    return _running_product(np.append(squared[:1], squared[1:] / squared[:-1]))


def _running_product(values: Float32) -> Float32:
    product: Float32 = np.cumprod(values, dtype=np.float64).astype(np.float32)
    return product


def _betas(config: SchedulerConfig) -> Float32:
    count = config.num_train_timesteps
    if config.trained_betas is not None:
        return np.asarray(config.trained_betas, dtype=np.float32)
    if config.beta_schedule == "linear":
        return _line(config.beta_start, config.beta_end, count)
    if config.beta_schedule == "scaled_linear":
        return _line(config.beta_start**0.5, config.beta_end**0.5, count) ** 2
    # Nichol and Dhariwal 2021: alpha_bar follows a squared cosine, beta is kept below 0.999.
    time = np.linspace(0, 1, count + 1)
    alpha_bar = np.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
    return np.asarray(np.minimum(1.0 - alpha_bar[1:] / alpha_bar[:-1], 0.999), dtype=np.float32)


def _line(start: float, end: float, count: int) -> Float32:
    """As torch lays it out: from both ends to the middle, a single-precision step, rounded once."""
    low, high = np.float32(start), np.float32(end)
    step, index = np.float64((high - low) / np.float32(count - 1)), np.arange(count)
    upwards, downwards = low + step * index, high - step * index[::-1]
    return np.where(index < count // 2, upwards, downwards).astype(np.float32)
