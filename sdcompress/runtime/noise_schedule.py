"""Reads `scheduler/scheduler_config.json` into a typed record, and derives the noise levels.

A folder names the scheduler it was made for; another one may be asked for by name. Options absent
from the file take the default that the *chosen* scheduler has in diffusers, so that a change of
scheduler gives the same timesteps as `OtherScheduler.from_config(scheduler.config)`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from sdcompress.runtime.arrays import Float64
from sdcompress.runtime.errors import BundleError, InputError
from sdcompress.runtime.layout import read_json

DIFFUSERS_CLASSES: dict[str, str] = {
    "DDIMScheduler": "ddim",
    "PNDMScheduler": "pndm",
    "EulerDiscreteScheduler": "euler",
    "DPMSolverMultistepScheduler": "dpmsolver++",
}


@dataclass(frozen=True)
class SchedulerConfig:
    """What the samplers read; field names are the keys of scheduler_config.json."""

    scheduler: str
    prediction_type: str = "epsilon"
    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: tuple[float, ...] | None = None
    timestep_spacing: str = "leading"
    steps_offset: int = 0
    set_alpha_to_one: bool = True
    clip_sample: bool = False
    clip_sample_range: float = 1.0
    final_sigmas_type: str = "zero"
    solver_order: int = 2
    lower_order_final: bool = True
    euler_at_final: bool = False
    lambda_min_clipped: float = -math.inf


_SHARED = {
    "prediction_type",
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "timestep_spacing",
    "steps_offset",
}
_OWN = {
    "ddim": {"set_alpha_to_one", "clip_sample", "clip_sample_range"},
    "pndm": {"set_alpha_to_one"},
    "euler": {"final_sigmas_type"},
    "dpmsolver++": {
        "final_sigmas_type",
        "solver_order",
        "lower_order_final",
        "euler_at_final",
        "lambda_min_clipped",
    },
}

# Defaults that differ from the record's. `clip_sample` stays off where diffusers' DDIM alone would
# clip: latents are not confined to [-1, 1], and its Stable Diffusion pipelines switch it off too.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "ddim": {},
    "pndm": {"set_alpha_to_one": False},
    "euler": {"timestep_spacing": "linspace"},
    "dpmsolver++": {"timestep_spacing": "linspace"},
}

_CHOICES: dict[str, tuple[Any, ...]] = {
    "prediction_type": ("epsilon", "v_prediction"),
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "timestep_spacing": ("leading", "linspace", "trailing"),
    "final_sigmas_type": ("zero", "sigma_min"),
    "solver_order": (1, 2),
}

# Options that exist in diffusers, with the values whose effect is implemented here.
_ONLY: dict[str, dict[str, tuple[Any, ...]]] = {
    "ddim": {"thresholding": (False,), "rescale_betas_zero_snr": (False,)},
    "pndm": {"skip_prk_steps": (True,)},
    "euler": {
        "rescale_betas_zero_snr": (False,),
        "interpolation_type": ("linear",),
        "timestep_type": ("discrete",),
        "use_karras_sigmas": (False, None),
        "use_exponential_sigmas": (False, None),
        "use_beta_sigmas": (False, None),
    },
    "dpmsolver++": {
        "rescale_betas_zero_snr": (False,),
        "thresholding": (False,),
        # The names other multistep solvers use; diffusers reads them as these two.
        "algorithm_type": ("dpmsolver++", "deis"),
        "solver_type": ("midpoint", "logrho", "bh1", "bh2"),
        "variance_type": (None, "fixed_small", "fixed_small_log", "fixed_large"),
        "use_karras_sigmas": (False, None),
        "use_exponential_sigmas": (False, None),
        "use_beta_sigmas": (False, None),
        "use_lu_lambdas": (False, None),
        "use_flow_sigmas": (False, None),
        "use_dynamic_shifting": (False, None),
    },
}

# Keys that only tune an option checked above, or that belong to schedulers that are not chosen.
_INERT = {
    "dynamic_thresholding_ratio",
    "sample_max_value",
    "flow_shift",
    "time_shift_type",
    "sigma_min",
    "sigma_max",
    "predict_x0",
    "solver_p",
    "disable_corrector",
    "original_inference_steps",
    "timestep_scaling",
    "variance_type",
}


def require_scheduler(folder: Path, override: str | None) -> None:
    """Raise BundleError unless the runtime has the scheduler of a model folder, or `override`."""
    where = folder / "scheduler" / "scheduler_config.json"
    read_scheduler_config(read_json(where), override, str(where))


def read_scheduler_config(
    values: Mapping[str, Any], override: str | None, where: str
) -> SchedulerConfig:
    """Turn the parsed scheduler_config.json into the record of the scheduler to be used."""
    class_name = values.get("_class_name")
    scheduler = override or DIFFUSERS_CLASSES.get(str(class_name))
    if scheduler is None:
        raise BundleError(
            f"{where}: the scheduler {class_name!r} is not available in this runtime. "
            f"Choose one by name instead: {', '.join(DIFFUSERS_CLASSES.values())}."
        )
    if scheduler not in _OWN:
        raise InputError(f"There is no scheduler {scheduler!r}. Choose one of: {', '.join(_OWN)}.")
    # diffusers marks values that were never chosen by the model's author.
    unset = set(values.get("_use_default_values", ()))
    given = {k: v for k, v in values.items() if not k.startswith("_") and k not in unset}
    native = DIFFUSERS_CLASSES.get(str(class_name)) == scheduler
    if scheduler == "pndm":
        # The latent models use PNDM without its Runge-Kutta warm-up, whatever their own scheduler.
        given.setdefault("skip_prk_steps", not native)
    _refuse_unimplemented(scheduler, given, where)
    used = _SHARED | _OWN[scheduler]
    chosen = {
        field.name: _typed(given[field.name], field.name, where)
        for field in fields(SchedulerConfig)
        if field.name in used and field.name in given
    }
    return SchedulerConfig(scheduler, **(_DEFAULTS[scheduler] | chosen))


def _refuse_unimplemented(scheduler: str, given: Mapping[str, Any], where: str) -> None:
    known_anywhere = set(_INERT).union(_SHARED, *_OWN.values(), *_ONLY.values())
    for key, value in given.items():
        allowed = _ONLY[scheduler].get(key)
        if allowed is not None and value not in allowed:
            accepted = " or ".join(repr(v) for v in allowed if v is not None)
            raise BundleError(
                f"{where}: {key}: {value!r} is not implemented for {scheduler} (only {accepted}). "
                "Change the file, or choose another scheduler by name."
            )
        if key not in known_anywhere and value not in (None, False):
            raise BundleError(
                f"{where}: the option {key}: {value!r} is not known to this runtime and could "
                "change the pictures. Remove it from the file if it has no effect."
            )


def _typed(value: Any, key: str, where: str) -> Any:
    """Check the JSON value of a field by the type of the field's default."""
    if key == "trained_betas":
        if value is None or (isinstance(value, list) and value):
            return None if value is None else tuple(float(beta) for beta in value)
        raise BundleError(f"{where}: trained_betas must be a list of numbers or null.")
    default = getattr(SchedulerConfig, key)
    if isinstance(default, float) and isinstance(value, int | float) and value is not True:
        return float(value)
    if type(value) is not type(default):
        raise BundleError(
            f"{where}: {key} must be of type {type(default).__name__}, not {value!r}."
        )
    if key in _CHOICES and value not in _CHOICES[key]:
        choices = ", ".join(map(repr, _CHOICES[key]))
        raise BundleError(f"{where}: {key}: {value!r} is not implemented; known: {choices}.")
    return value


def noise_levels(config: SchedulerConfig) -> Float64:
    """Noise-to-signal ratios sigma = sqrt((1 - alpha_bar) / alpha_bar), one per training step.

    alpha_bar is the running product of 1 - beta; the signal is scaled by sqrt(alpha_bar).
    """
    alpha_bar = np.cumprod(1.0 - _betas(config))
    return np.asarray(np.sqrt((1.0 - alpha_bar) / alpha_bar), dtype=np.float64)


def _betas(config: SchedulerConfig) -> Float64:
    count = config.num_train_timesteps
    if config.trained_betas is not None:
        return np.asarray(config.trained_betas, dtype=np.float64)
    if config.beta_schedule == "linear":
        return np.linspace(config.beta_start, config.beta_end, count)
    if config.beta_schedule == "scaled_linear":
        return np.linspace(config.beta_start**0.5, config.beta_end**0.5, count) ** 2
    # Nichol and Dhariwal 2021: alpha_bar follows a squared cosine, beta is kept below 0.999.
    time = np.linspace(0, 1, count + 1)
    alpha_bar = np.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
    return np.asarray(np.minimum(1.0 - alpha_bar[1:] / alpha_bar[:-1], 0.999), dtype=np.float64)
