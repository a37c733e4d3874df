"""Samplers: from noise to latents, one function per sampler.

Symbols, the same everywhere. A noisy sample is x = a * x0 + s * e, with x0 the clean latents, e
standard normal noise and a^2 + s^2 = 1. Its noise level is sigma = s / a, so a = 1 / sqrt(1 +
sigma^2). The network sees x and a timestep t, and predicts e ("epsilon") or v = a * e - s * x0
("v_prediction"); either gives x0 and e.

A sampler is a generator over a :class:`Plan`: it asks `predict(x, t)` once per row of the plan and
yields the latents after each. It keeps no state outside its own frame, so a run is abandoned by
not asking for the next item.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from sdcompress.runtime.arrays import Float32, Float64
from sdcompress.runtime.errors import InputError
from sdcompress.runtime.noise_schedule import SchedulerConfig, noise_levels

Predict = Callable[[Float32, float], Float32]


@dataclass(frozen=True)
class Plan:
    """Where the network is asked, and the noise level before and after each answer is used."""

    config: SchedulerConfig
    timesteps: Float64  # [calls]
    sigmas: Float64  # [calls]
    next_sigmas: Float64  # [calls]
    initial_scale: float  # what standard normal latents are multiplied with at the start

    def rows(self) -> Iterator[tuple[float, float, float]]:
        """(t, sigma, next sigma) as Python floats, which leave float32 arrays float32."""
        return zip(
            self.timesteps.tolist(), self.sigmas.tolist(), self.next_sigmas.tolist(), strict=True
        )


@dataclass(frozen=True)
class Scheduler:
    """A way to lay out the steps and a way to walk them."""

    plan: Callable[[SchedulerConfig, int], Plan]
    sample: Callable[[Plan, Float32, Predict], Iterator[Float32]]


def make_plan(config: SchedulerConfig, steps: int) -> Plan:
    """The plan of the configured scheduler for a number of steps."""
    if not 1 <= steps <= config.num_train_timesteps:
        raise InputError(
            f"steps is {steps}; it must be between 1 and {config.num_train_timesteps}, the number "
            "of steps the model was trained with."
        )
    return SCHEDULERS[config.scheduler].plan(config, steps)


def sample(plan: Plan, noise: Float32, predict: Predict) -> Iterator[Float32]:
    """Walk the plan from standard normal noise; yields the latents after each prediction."""
    latents = noise * plan.initial_scale
    return SCHEDULERS[plan.config.scheduler].sample(plan, latents, predict)


# Plans


def plan_ddim(config: SchedulerConfig, steps: int) -> Plan:
    """DDIM steps down by a fixed stride, whatever the spacing of the timesteps."""
    timesteps = np.round(_spaced(config, steps))
    sigmas, after = _strided_levels(config, timesteps, config.num_train_timesteps // steps)
    return Plan(config, timesteps, sigmas, after, initial_scale=1.0)


def plan_pndm(config: SchedulerConfig, steps: int) -> Plan:
    """PNDM without Runge-Kutta warm-up asks twice for its first step, hence steps + 1 calls."""
    once = np.round(_spaced(config, steps))
    stride = config.num_train_timesteps // steps
    timesteps = np.concatenate([once[:2], once[1:]])
    starts = timesteps.copy()
    if steps > 1:
        # The second call looks at the end of the first step, and the step is then taken again.
        starts[1] = timesteps[1] + stride
    sigmas, after = _strided_levels(config, starts, stride)
    return Plan(config, timesteps, sigmas, after, initial_scale=1.0)


def plan_euler(config: SchedulerConfig, steps: int) -> Plan:
    """Euler's method works in x / a, whose noise is sigma; timesteps need not be whole."""
    # Rounded to single precision, in which the network gets them.
    timesteps = _spaced(config, steps).astype(np.float32).astype(np.float64)
    levels = noise_levels(config)
    sigmas = np.interp(timesteps, np.arange(len(levels)), levels)
    # With "leading" spacing the first sigma is not the largest of training, where signal is lost.
    largest = float(sigmas.max())
    scale = math.sqrt(largest**2 + 1) if config.timestep_spacing == "leading" else largest
    return Plan(config, timesteps, sigmas, _followers(config, sigmas, levels), scale)


def plan_dpm_solver(config: SchedulerConfig, steps: int) -> Plan:
    """DPM-Solver lays out steps + 1 points and leaves the last to the final noise level."""
    levels = noise_levels(config)
    # log(a / s) = -log(sigma); beyond the clipped end a cosine schedule is numerically unsafe.
    usable = int(np.count_nonzero(-np.log(levels) >= config.lambda_min_clipped))
    if config.timestep_spacing == "linspace":
        timesteps = np.round(np.linspace(0, usable - 1, steps + 1))[:0:-1]
    elif config.timestep_spacing == "leading":
        stride = usable // (steps + 1)
        timesteps = np.arange(steps, 0, -1, dtype=np.float64) * stride + config.steps_offset
    else:
        stride_exact = config.num_train_timesteps / steps
        timesteps = np.round(np.arange(usable, 0, -stride_exact, dtype=np.float64))[:steps] - 1
    sigmas = np.interp(timesteps, np.arange(len(levels)), levels)
    if (np.diff(sigmas) >= 0).any():
        raise InputError(
            f"{steps} steps are too many for dpmsolver++ with {config.timestep_spacing} spacing: "
            "some would not lower the noise. Ask for fewer steps."
        )
    after = _followers(config, sigmas, levels)
    return Plan(config, timesteps, sigmas, after, initial_scale=1.0)


def _spaced(config: SchedulerConfig, steps: int) -> Float64:
    """Timesteps, highest first (table 2 of Lin et al. 2023, arXiv 2305.08891)."""
    count = config.num_train_timesteps
    if config.timestep_spacing == "linspace":
        return np.linspace(0, count - 1, steps)[::-1]
    if config.timestep_spacing == "leading":
        whole = np.arange(steps - 1, -1, -1, dtype=np.float64) * (count // steps)
        return whole + config.steps_offset
    # Rounding of count / steps can add one item below zero at the end; it is not a step.
    return np.round(np.arange(count, 0, -count / steps, dtype=np.float64))[:steps] - 1


def _strided_levels(
    config: SchedulerConfig, starts: Float64, stride: int
) -> tuple[Float64, Float64]:
    """Noise levels at `starts` and one stride below; below zero lies the clean end."""
    levels = noise_levels(config)
    at = starts.astype(np.int64)
    if at.max() >= len(levels):
        raise InputError(
            f"The first timestep would be {at.max()}, but the model knows 0 to {len(levels) - 1}: "
            f"ask for fewer steps (steps_offset is {config.steps_offset})."
        )
    clean = 0.0 if config.set_alpha_to_one else float(levels[0])
    below = at - stride
    return levels[at], np.where(below >= 0, levels[np.maximum(below, 0)], clean)


def _followers(config: SchedulerConfig, sigmas: Float64, levels: Float64) -> Float64:
    final = 0.0 if config.final_sigmas_type == "zero" else float(levels[0])
    return np.append(sigmas[1:], final)


# Samplers


def ddim(plan: Plan, x: Float32, predict: Predict) -> Iterator[Float32]:
    """Song et al. 2021, formula 12 with eta = 0: x' = a' x0 + s' e."""
    config = plan.config
    for t, sigma, next_sigma in plan.rows():
        clean, noise = _split(config.prediction_type, x, sigma, predict(x, t))
        if config.clip_sample:
            clean = np.clip(clean, -config.clip_sample_range, config.clip_sample_range)
        x = _combine(clean, noise, next_sigma)
        yield x


def pndm(plan: Plan, x: Float32, predict: Predict) -> Iterator[Float32]:
    """Liu et al. 2022, linear multistep of order up to 4 over DDIM's transfer (formulas 9, 12).

    The first step is taken twice, the second time with the mean of the predictions at its two ends.
    """
    start = x
    history: list[Float32] = []
    for call, (t, sigma, next_sigma) in enumerate(plan.rows()):
        output = predict(x, t)
        if call == 1:
            output = (output + history[-1]) * 0.5
            x = start
        else:
            history = [*history[-3:], output]
            output = _adams_bashforth(history)
        clean, noise = _split(plan.config.prediction_type, x, sigma, output)
        x = _combine(clean, noise, next_sigma)
        yield x


def euler(plan: Plan, x: Float32, predict: Predict) -> Iterator[Float32]:
    """Karras et al. 2022, algorithm 1 without churn; here x is x0 + sigma * e."""
    for t, sigma, next_sigma in plan.rows():
        scaled = x / math.sqrt(sigma**2 + 1)
        clean, _ = _split(plan.config.prediction_type, scaled, sigma, predict(scaled, t))
        slope = (x - clean) / sigma
        x = x + slope * (next_sigma - sigma)
        yield x


def dpm_solver_plus_plus(plan: Plan, x: Float32, predict: Predict) -> Iterator[Float32]:
    """Lu et al. 2022 (arXiv 2211.01095), algorithm 2: multistep, second order, midpoint.

    With lambda = -log(sigma) and h its growth in a step: x' = (s'/s) x + a' (1 - exp(-h)) D, where
    D is x0, or x0 extrapolated through the previous step's x0 to the middle of this one.
    """
    config, calls = plan.config, len(plan.timesteps)
    previous: Float32 | None = None
    previous_h = 0.0
    for call, (t, sigma, next_sigma) in enumerate(plan.rows()):
        clean, _ = _split(config.prediction_type, x, sigma, predict(x, t))
        a_next, s_next = _signal_and_noise(next_sigma)
        s = _signal_and_noise(sigma)[1]
        shrink = next_sigma / sigma  # exp(-h), zero on the way to the clean end
        h = -math.log(shrink) if shrink > 0 else math.inf
        first_order = config.solver_order == 1 or previous is None
        if call == calls - 1:
            first_order = first_order or _ends_in_first_order(config, calls)
        estimate = clean
        if previous is not None and not first_order:
            estimate = clean + (clean - previous) * (h / (2 * previous_h))
        x = x * (s_next / s) + estimate * (a_next * (1 - shrink))
        previous, previous_h = clean, h
        yield x


def _ends_in_first_order(config: SchedulerConfig, calls: int) -> bool:
    short = config.lower_order_final and calls < 15
    return short or config.euler_at_final or config.final_sigmas_type == "zero"


def _signal_and_noise(sigma: float) -> tuple[float, float]:
    a = 1 / math.sqrt(1 + sigma**2)
    return a, sigma * a


def _split(
    prediction_type: str, x: Float32, sigma: float, output: Float32
) -> tuple[Float32, Float32]:
    """The clean latents x0 and the noise e in x, from the network's output."""
    a, s = _signal_and_noise(sigma)
    if prediction_type == "epsilon":
        return x * (1 / a) - output * sigma, output
    return x * a - output * s, output * a + x * s


def _combine(clean: Float32, noise: Float32, sigma: float) -> Float32:
    a, s = _signal_and_noise(sigma)
    return clean * a + noise * s


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


SCHEDULERS: dict[str, Scheduler] = {
    "ddim": Scheduler(plan_ddim, ddim),
    "pndm": Scheduler(plan_pndm, pndm),
    "euler": Scheduler(plan_euler, euler),
    "dpmsolver++": Scheduler(plan_dpm_solver, dpm_solver_plus_plus),
}
