"""Reads `scheduler/scheduler_config.json` into a typed record.

A folder names the scheduler it was made for; another one may be asked for by name. Options absent
from the file take the default that the *chosen* scheduler has in diffusers, so that a change of
scheduler gives the same timesteps as `OtherScheduler.from_config(scheduler.config)`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from sdcompress.runtime.errors import BundleError, InputError
from sdcompress.runtime.layout import read_json


@dataclass(frozen=True)
class SchedulerConfig:
    """What plans and samplers read; field names are the keys of scheduler_config.json."""

    scheduler: str
    prediction_type: str = "epsilon"
    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: tuple[float, ...] | None = None
    rescale_betas_zero_snr: bool = False
    timestep_spacing: str = "leading"
    steps_offset: int = 0
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    final_sigmas_type: str = "zero"
    set_alpha_to_one: bool = True
    clip_sample: bool = False
    clip_sample_range: float = 1.0
    variance_type: str = "fixed_small"
    algorithm_type: str = "dpmsolver++"
    solver_order: int = 2
    solver_type: str = "midpoint"
    lower_order_final: bool = True
    euler_at_final: bool = False
    lambda_min_clipped: float = -math.inf
    disable_corrector: tuple[int, ...] = ()
    original_inference_steps: int = 50
    timestep_scaling: float = 10.0

    def clipped(self, clean: Any) -> Any:
        """The estimate of the clean latents, confined to the range where the file asks for it."""
        if not self.clip_sample:
            return clean
        return clean.clip(-self.clip_sample_range, self.clip_sample_range)


@dataclass(frozen=True)
class _Kind:
    """One scheduler: its class in diffusers and the options it has there."""

    class_name: str
    own: frozenset[str]  # options that are read, beside the shared ones
    defaults: Mapping[str, Any] = field(default_factory=dict)  # where they differ from the record's
    # Options that exist in diffusers, with the values whose effect is implemented here.
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    forced: Mapping[str, Any] = field(default_factory=dict)  # what the name alone decides


_SHARED = {
    "prediction_type",
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
}
_SPACED = {"timestep_spacing", "steps_offset"}
_RESPACED = {"use_karras_sigmas", "use_exponential_sigmas"}
_ZERO_SNR = {"rescale_betas_zero_snr"}
_CLIPPED = {"clip_sample", "clip_sample_range"}
_SOLVER = {"final_sigmas_type", "solver_order", "solver_type", "lower_order_final"}
_LINSPACE = {"timestep_spacing": "linspace"}

_NO_THRESHOLDING: dict[str, tuple[Any, ...]] = {"thresholding": (False,)}
_NO_BETA: dict[str, tuple[Any, ...]] = {"use_beta_sigmas": (False,)}
_NO_FLOW: dict[str, tuple[Any, ...]] = {
    "use_flow_sigmas": (False,),
    "use_dynamic_shifting": (False,),
    "use_lu_lambdas": (False,),
}
_DPM_ONLY = _NO_THRESHOLDING | _NO_BETA | _NO_FLOW
_MULTISTEP = _SPACED | _RESPACED | _ZERO_SNR | _SOLVER
_DPM_MULTISTEP = _MULTISTEP | {"algorithm_type", "euler_at_final", "lambda_min_clipped"}

# `clip_sample` stays off where DDIM, DDPM alone would clip by default: latents are not confined to
# [-1, 1], and diffusers' Stable Diffusion pipelines switch it off too.
_KINDS: dict[str, _Kind] = {
    "ddim": _Kind(
        "DDIMScheduler",
        frozenset(_SPACED | _ZERO_SNR | _CLIPPED | {"set_alpha_to_one"}),
        only=_NO_THRESHOLDING,
    ),
    "ddpm": _Kind(
        "DDPMScheduler",
        frozenset(_SPACED | _ZERO_SNR | _CLIPPED | {"variance_type"}),
        only=_NO_THRESHOLDING | {"variance_type": ("fixed_small", "fixed_large")},
    ),
    "pndm": _Kind(
        "PNDMScheduler",
        frozenset(_SPACED | {"set_alpha_to_one"}),
        defaults={"set_alpha_to_one": False},
        only={"skip_prk_steps": (True,)},
    ),
    "lms": _Kind("LMSDiscreteScheduler", frozenset(_SPACED | _RESPACED), _LINSPACE, _NO_BETA),
    "euler": _Kind(
        "EulerDiscreteScheduler",
        frozenset(_SPACED | _RESPACED | _ZERO_SNR | {"final_sigmas_type"}),
        _LINSPACE,
        _NO_BETA
        | {"interpolation_type": ("linear",), "timestep_type": ("discrete",)}
        | {"sigma_min": (), "sigma_max": ()},
    ),
    "euler_ancestral": _Kind(
        "EulerAncestralDiscreteScheduler", frozenset(_SPACED | _ZERO_SNR), _LINSPACE
    ),
    "heun": _Kind(
        "HeunDiscreteScheduler",
        frozenset(_SPACED | _RESPACED | _CLIPPED),
        _LINSPACE | {"beta_start": 0.00085, "beta_end": 0.012},
        _NO_BETA,
    ),
    "dpmsolver++": _Kind(
        "DPMSolverMultistepScheduler", frozenset(_DPM_MULTISTEP), _LINSPACE, _DPM_ONLY
    ),
    "sde-dpmsolver++": _Kind(
        "DPMSolverMultistepScheduler",
        frozenset(_DPM_MULTISTEP),
        _LINSPACE,
        _DPM_ONLY,
        forced={"algorithm_type": "sde-dpmsolver++"},
    ),
    "dpmsolver++-singlestep": _Kind(
        "DPMSolverSinglestepScheduler",
        frozenset(_RESPACED | _SOLVER | {"algorithm_type", "lambda_min_clipped"}),
        _LINSPACE | {"lower_order_final": False},
        _DPM_ONLY,
    ),
    "unipc": _Kind(
        "UniPCMultistepScheduler",
        frozenset(_MULTISTEP | {"disable_corrector"}),
        _LINSPACE | {"solver_type": "bh2"},
        _DPM_ONLY | {"predict_x0": (True,), "solver_p": (), "sigma_min": (), "sigma_max": ()},
    ),
    "lcm": _Kind(
        "LCMScheduler",
        frozenset(_ZERO_SNR | _CLIPPED | {"original_inference_steps", "timestep_scaling"}),
        {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
        _NO_THRESHOLDING,
    ),
}
NAMES = tuple(_KINDS)

# The name that a class in a file stands for; "sde-dpmsolver++" is an option of the file there.
DIFFUSERS_CLASSES = {
    kind.class_name: name for name, kind in reversed(_KINDS.items()) if not kind.forced
}

_CHOICES: dict[str, tuple[Any, ...]] = {
    "prediction_type": ("epsilon", "v_prediction"),
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "timestep_spacing": ("leading", "linspace", "trailing"),
    "final_sigmas_type": ("zero", "sigma_min"),
    "solver_order": (1, 2, 3),
    "algorithm_type": ("dpmsolver++", "sde-dpmsolver++"),
}
_SOLVER_TYPES = {"unipc": ("bh1", "bh2")}
# The names that other multistep solvers use; diffusers reads them as its own default.
_FOREIGN = {"algorithm_type": {"deis"}, "solver_type": {"midpoint", "heun", "logrho", "bh1", "bh2"}}

_COUNTS = {"num_train_timesteps", "original_inference_steps"}
_MOST_TIMESTEPS = 100_000

# Keys that only tune an option checked elsewhere, or that only matter to classes not chosen.
_INERT = {
    "dynamic_thresholding_ratio",
    "sample_max_value",
    "flow_shift",
    "time_shift_type",
    "variance_type",
    "shift_terminal",
}


def require_scheduler(folder: Path, override: str | None) -> None:
    """Raise BundleError unless the runtime has the scheduler of a model folder, or `override`."""
    where = folder / "scheduler" / "scheduler_config.json"
    read_scheduler_config(read_json(where), override, str(where))


def class_of(name: str) -> str:
    """The class that diffusers has for a scheduler of this runtime."""
    return _KINDS[name].class_name


def read_scheduler_config(
    values: Mapping[str, Any], override: str | None, where: str
) -> SchedulerConfig:
    """Turn the parsed scheduler_config.json into the record of the scheduler to be used."""
    class_name = values.get("_class_name")
    scheduler = override or DIFFUSERS_CLASSES.get(str(class_name))
    if scheduler is None:
        raise BundleError(
            f"{where}: the scheduler {class_name!r} is not available in this runtime. "
            f"Choose one by name instead: {', '.join(NAMES)}."
        )
    if scheduler not in _KINDS:
        raise InputError(f"There is no scheduler {scheduler!r}. Choose one of: {', '.join(NAMES)}.")
    kind = _KINDS[scheduler]
    # diffusers marks values that were never chosen by the model's author.
    unset = _names(values.get("_use_default_values", []), where)
    given = {
        key: value
        for key, value in values.items()
        if not key.startswith("_") and key not in unset and value is not None
    } | dict(kind.forced)
    if scheduler == "pndm":
        # The latent models use PNDM without its Runge-Kutta warm-up, whatever their own scheduler.
        given.setdefault("skip_prk_steps", str(class_name) != kind.class_name)
    given = _translated(scheduler, given)
    _refuse_unimplemented(scheduler, given, where)
    used = _SHARED | kind.own
    chosen = {
        entry.name: _typed(given[entry.name], entry.name, where)
        for entry in fields(SchedulerConfig)
        if entry.name in used and entry.name in given
    }
    config = SchedulerConfig(scheduler, **(dict(kind.defaults) | chosen))
    _refuse_contradictions(config, where)
    return config


def _translated(scheduler: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves out values that name a variant of another solver."""
    own = _SOLVER_TYPES.get(scheduler, ("midpoint", "heun"))
    foreign = _FOREIGN | {"solver_type": _FOREIGN["solver_type"] - set(own)}
    return {
        key: value
        for key, value in given.items()
        if not (isinstance(value, str) and value in foreign.get(key, ()))
    }


def _refuse_unimplemented(scheduler: str, given: Mapping[str, Any], where: str) -> None:
    kinds = _KINDS.values()
    known = _INERT.union(_SHARED, *(kind.own for kind in kinds), *(kind.only for kind in kinds))
    for key, value in given.items():
        allowed = _KINDS[scheduler].only.get(key)
        if allowed is not None and value not in allowed:
            accepted = " or ".join(repr(v) for v in allowed) or "leaving it out"
            raise BundleError(
                f"{where}: {key}: {value!r} is not implemented for {scheduler} (only {accepted}). "
                "Change the file, or choose another scheduler by name."
            )
        if key not in known and value is not False:
            raise BundleError(
                f"{where}: the option {key}: {value!r} is not known to this runtime and could "
                "change the pictures. Remove it from the file if it has no effect."
            )


def _refuse_contradictions(config: SchedulerConfig, where: str) -> None:
    solver_types = _SOLVER_TYPES.get(config.scheduler, ("midpoint", "heun"))
    faults = {
        f"solver_type: {config.solver_type!r} is not one of {', '.join(solver_types)}": (
            config.solver_type not in solver_types
        ),
        "use_karras_sigmas and use_exponential_sigmas exclude each other": (
            config.use_karras_sigmas and config.use_exponential_sigmas
        ),
        "algorithm_type: 'sde-dpmsolver++' is implemented for solver_order 1 and 2": (
            config.algorithm_type == "sde-dpmsolver++" and config.solver_order > 2
        ),
        "rescale_betas_zero_snr: at the first step no signal is left, from which epsilon would "
        "tell nothing; it needs prediction_type: v_prediction": (
            config.rescale_betas_zero_snr
            and config.prediction_type == "epsilon"
            and config.scheduler in ("ddim", "ddpm", "lcm")
        ),
    }
    for fault, present in faults.items():
        if present:
            raise BundleError(f"{where}: {fault}. Change the file, or choose another scheduler.")


def _typed(value: Any, key: str, where: str) -> Any:
    """Check the JSON value of a field by the type of the field's default."""
    if key == "trained_betas":
        if isinstance(value, list) and value and all(_is_share(beta) for beta in value):
            return tuple(float(beta) for beta in value)
        raise BundleError(f"{where}: trained_betas must be numbers between 0 and 1, or null.")
    if key == "disable_corrector":
        if isinstance(value, list) and all(type(step) is int for step in value):
            return tuple(value)
        raise BundleError(f"{where}: disable_corrector must be a list of step numbers.")
    default = getattr(SchedulerConfig, key)
    if isinstance(default, float) and type(value) is int:
        value = float(value)
    if type(value) is not type(default):
        raise BundleError(
            f"{where}: {key} must be of type {type(default).__name__}, not {value!r}."
        )
    if key in ("beta_start", "beta_end") and not _is_share(value):
        raise BundleError(f"{where}: {key} is {value!r}; it must be between 0 and 1.")
    if key in _COUNTS and not 1 <= value <= _MOST_TIMESTEPS:
        raise BundleError(f"{where}: {key} is {value!r}; it must be 1 to {_MOST_TIMESTEPS}.")
    if key in _CHOICES and value not in _CHOICES[key]:
        choices = ", ".join(map(repr, _CHOICES[key]))
        raise BundleError(f"{where}: {key}: {value!r} is not implemented; known: {choices}.")
    return value


def _names(value: Any, where: str) -> set[str]:
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return set(value)
    raise BundleError(f"{where}: _use_default_values must be a list of names.")


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1
