"""Schedulers: a plan lays out the steps, a sampler walks them from noise to latents.

A sampler is a generator over a :class:`Plan`: it asks `predict(x, t)` once per row, yields the
latents after each and is sent those to go on with. It keeps no state outside its own frame, so a
run is abandoned by not asking for the next item.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from sdcompress.runtime.arrays import Float32
from sdcompress.runtime.errors import InputError
from sdcompress.runtime.schedulers import diffusion, dpm_solver, unscaled
from sdcompress.runtime.schedulers.config import (
    DIFFUSERS_CLASSES,
    SchedulerConfig,
    class_of,
    read_scheduler_config,
    require_scheduler,
)
from sdcompress.runtime.schedulers.estimate import FreshNoise, Predict, Sampler, Walk
from sdcompress.runtime.schedulers.plan import (
    Plan,
    plan_ddpm,
    plan_dpm_solver,
    plan_heun,
    plan_lcm,
    plan_pndm,
    plan_strided,
    plan_unscaled,
)

__all__ = [
    "DIFFUSERS_CLASSES",
    "SCHEDULERS",
    "Plan",
    "SchedulerConfig",
    "class_of",
    "make_plan",
    "read_scheduler_config",
    "require_scheduler",
    "walk",
]


@dataclass(frozen=True)
class _Scheduler:
    """A way to lay out the steps and a way to walk them."""

    plan: Callable[[SchedulerConfig, int], Plan]
    sample: Sampler
    calls_a_step: int = 1


SCHEDULERS: dict[str, _Scheduler] = {
    "ddim": _Scheduler(plan_strided, diffusion.ddim),
    "ddpm": _Scheduler(plan_ddpm, diffusion.ddpm),
    "pndm": _Scheduler(plan_pndm, diffusion.pndm),
    "lms": _Scheduler(plan_unscaled, unscaled.lms),
    "euler": _Scheduler(plan_unscaled, unscaled.euler),
    "euler_ancestral": _Scheduler(plan_unscaled, unscaled.euler_ancestral),
    "heun": _Scheduler(plan_heun, unscaled.heun, calls_a_step=2),
    "dpmsolver++": _Scheduler(plan_dpm_solver, dpm_solver.multistep),
    "sde-dpmsolver++": _Scheduler(plan_dpm_solver, dpm_solver.multistep),
    "dpmsolver++-singlestep": _Scheduler(plan_dpm_solver, dpm_solver.singlestep),
    "unipc": _Scheduler(plan_dpm_solver, dpm_solver.unipc),
    "lcm": _Scheduler(plan_lcm, diffusion.lcm),
}


def make_plan(
    config: SchedulerConfig, steps: int, *, strength: float = 1.0, eta: float = 0.0
) -> Plan:
    """The plan of the configured scheduler.

    `strength` below 1 leaves out the first steps, for a picture to begin with; `eta` is DDIM's.
    Raises InputError when the scheduler cannot do what is asked.
    """
    if not 1 <= steps <= config.num_train_timesteps:
        raise InputError(
            f"steps is {steps}; it must be between 1 and {config.num_train_timesteps}, the number "
            "of steps the model was trained with."
        )
    if eta and config.scheduler != "ddim":
        raise InputError(f"eta is {eta}; only ddim knows it, and this is {config.scheduler}.")
    taken = min(int(steps * strength), steps)
    if taken < 1:
        raise InputError(f"strength {strength} of {steps} steps leaves none to take. Raise either.")
    scheduler = SCHEDULERS[config.scheduler]
    skipped = (steps - taken) * scheduler.calls_a_step
    if config.scheduler == "pndm":
        return plan_pndm(config, steps, skipped)
    return replace(scheduler.plan(config, steps).after(skipped), eta=eta)


def walk(plan: Plan, x: Float32, predict: Predict, noise: FreshNoise) -> Walk:
    """Walk the plan from latents in its scale; see the module for what is yielded and sent."""
    return SCHEDULERS[plan.config.scheduler].sample(plan, x, predict, noise)
