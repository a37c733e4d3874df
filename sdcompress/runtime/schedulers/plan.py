"""Plans: where the network is asked, and which noise level each answer leads to."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from sdcompress.runtime.arrays import Float32, Float64
from sdcompress.runtime.errors import InputError
from sdcompress.runtime.schedulers.config import SchedulerConfig
from sdcompress.runtime.schedulers.levels import (
    noise_levels,
    respaced,
    signal_and_noise,
    spaced,
    timesteps_of,
)


@dataclass(frozen=True)
class Row:
    """One call of the network: at timestep `t` and level `asked`, to step from `sigma` to `next`.

    `asked` and `sigma` are the same but where a step is taken twice.
    """

    t: float
    asked: float
    sigma: float
    next: float


@dataclass(frozen=True)
class Plan:
    """The calls of a run, as arrays of one item a call, and how the latents are scaled.

    Latents are a * x0 + s * e with a^2 + s^2 = 1 or, if `unscaled`, x0 + sigma * e; the network
    gets the former in any case.
    """

    config: SchedulerConfig
    steps: int  # asked for; samplers may need more calls than steps
    timesteps: Float64
    asked: Float64
    sigmas: Float64
    next_sigmas: Float64
    initial_scale: float = 1.0  # of standard normal latents, for a start from pure noise
    unscaled: bool = False
    eta: float = 0.0  # DDIM's share of fresh noise
    skipped: int = 0  # calls left out at the start, for a picture to begin with

    def __len__(self) -> int:
        return len(self.timesteps)

    def rows(self) -> Iterator[Row]:
        """Python floats, which leave float32 arrays float32."""
        columns = (self.timesteps, self.asked, self.sigmas, self.next_sigmas)
        return map(Row, *(column.tolist() for column in columns))

    def after(self, calls: int) -> "Plan":
        """The plan without its first calls."""
        return replace(
            self,
            timesteps=self.timesteps[calls:],
            asked=self.asked[calls:],
            sigmas=self.sigmas[calls:],
            next_sigmas=self.next_sigmas[calls:],
            skipped=self.skipped + calls,
        )

    def noised(self, clean: Float32, noise: Float32, call: int) -> Float32:
        """Clean latents with as much noise as the network is to find at a call."""
        sigma = float(self.asked[call])
        if self.unscaled:
            return clean + noise * sigma
        a, s = signal_and_noise(sigma)
        return clean * a + noise * s


def plan_strided(config: SchedulerConfig, steps: int) -> Plan:
    """DDIM and PNDM step down by a fixed stride, whatever the spacing of the timesteps."""
    timesteps = np.round(spaced(config, steps))
    return _strided(config, steps, timesteps, timesteps)


def plan_pndm(config: SchedulerConfig, steps: int, skipped: int = 0) -> Plan:
    """PNDM without Runge-Kutta warm-up asks twice for its first step, hence steps + 1 calls.

    Whatever call is the second is meant to look at the end of the first step, which is then taken
    again; as in diffusers, a run that begins later is planned as if that held there too.
    """
    once = np.round(spaced(config, steps))
    timesteps = np.concatenate([once[:2], once[1:]])[skipped:]
    starts = timesteps.copy()
    if len(starts) > 1:
        starts[1] += config.num_train_timesteps // steps
    return replace(_strided(config, steps, timesteps, starts), skipped=skipped)


def plan_ddpm(config: SchedulerConfig, steps: int) -> Plan:
    """DDPM steps from each timestep to the next, the last time to no noise at all."""
    timesteps = np.round(spaced(config, steps))
    sigmas = _at(noise_levels(config), timesteps, config)
    return Plan(config, steps, timesteps, sigmas, sigmas, np.append(sigmas[1:], 0.0))


def plan_lcm(config: SchedulerConfig, steps: int) -> Plan:
    """Latent consistency models know only the timesteps that they were distilled at."""
    known = config.original_inference_steps
    if steps > known:
        raise InputError(
            f"steps is {steps}; lcm has at most {known}, its original_inference_steps. "
            "4 to 8 are usual."
        )
    stride = config.num_train_timesteps // known
    distilled = np.arange(known, 0, -1, dtype=np.float64) * stride - 1
    timesteps = distilled[np.floor(np.linspace(0, known, steps, endpoint=False)).astype(np.int64)]
    sigmas = _at(noise_levels(config), timesteps, config)
    return Plan(config, steps, timesteps, sigmas, sigmas, np.append(sigmas[1:], 0.0))


def plan_unscaled(config: SchedulerConfig, steps: int) -> Plan:
    """Euler's method and its kin work in x / a; their timesteps need not be whole."""
    # Rounded to single precision, in which the network gets them.
    timesteps = _single(spaced(config, steps))
    levels = noise_levels(config)
    sigmas = np.interp(timesteps, np.arange(len(levels)), levels)
    if _is_respaced(config):
        sigmas = respaced(config, float(sigmas[0]), float(sigmas[-1]), steps)
        timesteps = _single(timesteps_of(sigmas, levels))
    # With "leading" spacing the first sigma is not the largest of training, where signal is lost.
    largest = float(sigmas.max())
    scale = math.sqrt(largest**2 + 1) if config.timestep_spacing == "leading" else largest
    following = _followers(config, sigmas, levels)
    return Plan(
        config, steps, timesteps, sigmas, sigmas, following, initial_scale=scale, unscaled=True
    )


def plan_heun(config: SchedulerConfig, steps: int) -> Plan:
    """Heun's method asks at both ends of each step, but for the last, hence 2 * steps - 1 calls."""
    euler = plan_unscaled(config, steps)
    both_ends = np.repeat(np.arange(steps), 2)[1:]
    of_step = np.repeat(np.arange(steps), 2)[:-1]
    return replace(
        euler,
        timesteps=euler.timesteps[both_ends],
        asked=euler.sigmas[both_ends],
        sigmas=euler.sigmas[of_step],
        next_sigmas=euler.next_sigmas[of_step],
    )


def plan_dpm_solver(config: SchedulerConfig, steps: int) -> Plan:
    """DPM-Solver and UniPC lay out steps + 1 points and leave the last to the final level."""
    levels = noise_levels(config)
    if _is_respaced(config):
        largest, smallest = float(levels[-1]), float(levels[0])
        sigmas = respaced(config, largest, smallest, steps)
        timesteps = timesteps_of(sigmas, levels)
        if config.use_karras_sigmas and not _keeps_fractions(config):
            timesteps = np.round(timesteps)
        timesteps = np.floor(timesteps)  # as whole numbers are what diffusers asks at
    else:
        timesteps = _dpm_timesteps(config, levels, steps)
        sigmas = np.interp(timesteps, np.arange(len(levels)), levels)
    if (np.diff(sigmas) >= 0).any():
        raise InputError(
            f"{steps} steps are too many for {config.scheduler} with {config.timestep_spacing} "
            "spacing: some would not lower the noise. Ask for fewer steps."
        )
    return Plan(config, steps, timesteps, sigmas, sigmas, _followers(config, sigmas, levels))


def _dpm_timesteps(config: SchedulerConfig, levels: Float64, steps: int) -> Float64:
    # log(a / s) = -log(sigma); beyond the clipped end a cosine schedule is numerically unsafe.
    usable = int(np.count_nonzero(-np.log(levels) >= config.lambda_min_clipped))
    if config.timestep_spacing == "linspace":
        return np.round(np.linspace(0, usable - 1, steps + 1))[:0:-1]
    if config.timestep_spacing == "leading":
        stride = usable // (steps + 1)
        return np.arange(steps, 0, -1, dtype=np.float64) * stride + config.steps_offset
    stride_exact = config.num_train_timesteps / steps
    return np.round(np.arange(usable, 0, -stride_exact, dtype=np.float64))[:steps] - 1


def _is_respaced(config: SchedulerConfig) -> bool:
    return config.use_karras_sigmas or config.use_exponential_sigmas


def _keeps_fractions(config: SchedulerConfig) -> bool:
    multistep = config.scheduler in ("dpmsolver++", "sde-dpmsolver++")
    return multistep and config.beta_schedule == "squaredcos_cap_v2"


def _single(values: Float64) -> Float64:
    return values.astype(np.float32).astype(np.float64)


def _strided(config: SchedulerConfig, steps: int, timesteps: Float64, starts: Float64) -> Plan:
    """Steps from the levels at `starts` to one stride below; below zero lies the clean end."""
    levels = noise_levels(config)
    sigmas = _at(levels, starts, config)
    clean = 0.0 if config.set_alpha_to_one else float(levels[0])
    below = starts.astype(np.int64) - config.num_train_timesteps // steps
    following = np.where(below >= 0, levels[np.maximum(below, 0)], clean)
    return Plan(config, steps, timesteps, _at(levels, timesteps, config), sigmas, following)


def _at(levels: Float64, timesteps: Float64, config: SchedulerConfig) -> Float64:
    at = timesteps.astype(np.int64)
    if at.max() >= len(levels):
        raise InputError(
            f"The first timestep would be {at.max()}, but the model knows 0 to {len(levels) - 1}: "
            f"ask for fewer steps (steps_offset is {config.steps_offset})."
        )
    return levels[at]


def _followers(config: SchedulerConfig, sigmas: Float64, levels: Float64) -> Float64:
    if config.final_sigmas_type == "zero":
        return np.append(sigmas[1:], 0.0)
    # UniPC takes the smallest of the levels it visits where those were respaced.
    visited = config.scheduler == "unipc" and _is_respaced(config)
    return np.append(sigmas[1:], sigmas[-1] if visited else float(levels[0]))
