"""Samplers against diffusers: the same timesteps, the same trajectory."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_model import SCHEDULER

from sdcompress.runtime.arrays import Float32
from sdcompress.runtime.errors import BundleError, InputError
from sdcompress.runtime.noise_schedule import SchedulerConfig, read_scheduler_config
from sdcompress.runtime.schedulers import SCHEDULERS, make_plan, sample

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

CLASSES = {
    "ddim": "DDIMScheduler",
    "pndm": "PNDMScheduler",
    "euler": "EulerDiscreteScheduler",
    "dpmsolver++": "DPMSolverMultistepScheduler",
}
BASE: dict[str, Any] = {k: v for k, v in SCHEDULER.items() if k != "_class_name"}
SPACINGS = ("leading", "linspace", "trailing")


def predict_noise(x: Float32, timestep: float) -> Float32:
    """A fixed, smooth predictor that depends on every input, cheap and the same for both sides."""
    return np.tanh(x * 0.7 + np.float32(np.sin(timestep / 130))) * np.float32(0.9)


def own_config(name: str, values: dict[str, Any], override: str | None = None) -> SchedulerConfig:
    return read_scheduler_config({"_class_name": CLASSES[name]} | values, override, "test")


def oracle(name: str, values: dict[str, Any]) -> Any:
    accepted = getattr(diffusers, CLASSES[name])
    return accepted.from_config({"_class_name": CLASSES[name]} | values)


def oracle_trajectory(scheduler: Any, steps: int, noise: Float32) -> tuple[list[float], Any]:
    scheduler.set_timesteps(steps)
    x = torch.from_numpy(noise) * scheduler.init_noise_sigma
    trajectory = []
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t)
        output = torch.from_numpy(predict_noise(scaled.numpy(), float(t)))
        x = scheduler.step(output, t, x).prev_sample
        trajectory.append(x.numpy())
    return scheduler.timesteps.tolist(), trajectory


def assert_same_as_oracle(config: SchedulerConfig, scheduler: Any, steps: int) -> None:
    noise = np.random.default_rng(5).standard_normal((1, 4, 8, 8), dtype=np.float32)
    timesteps, expected = oracle_trajectory(scheduler, steps, noise)
    plan = make_plan(config, steps)
    assert plan.timesteps.tolist() == timesteps
    actual = list(sample(plan, noise, predict_noise))
    assert len(actual) == len(expected)
    for index, (mine, theirs) in enumerate(zip(actual, expected, strict=True)):
        assert mine.dtype == np.float32
        error = np.abs(mine - theirs).max() / np.abs(theirs).max()
        assert error < 1e-4, f"step {index + 1}: relative error {error:.2e}"


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", list(CLASSES))
def test_trajectory_of_25_steps_is_that_of_diffusers(
    name: str, prediction_type: str, spacing: str
) -> None:
    values = BASE | {"prediction_type": prediction_type, "timestep_spacing": spacing}
    assert_same_as_oracle(own_config(name, values), oracle(name, values), 25)


@pytest.mark.parametrize(
    ("name", "changes", "steps"),
    [
        ("ddim", {"set_alpha_to_one": True}, 25),
        ("ddim", {"clip_sample": True, "clip_sample_range": 0.8}, 12),
        ("ddim", {"beta_schedule": "squaredcos_cap_v2"}, 10),
        ("ddim", {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}, 10),
        ("pndm", {"set_alpha_to_one": True}, 25),
        ("pndm", {"trained_betas": np.linspace(0.001, 0.02, 1000).tolist()}, 10),
        ("pndm", {}, 1),
        ("pndm", {}, 2),
        ("pndm", {"steps_offset": 0, "timestep_spacing": "leading"}, 3),
        ("euler", {"final_sigmas_type": "sigma_min"}, 10),
        ("euler", {}, 1),
        ("dpmsolver++", {"final_sigmas_type": "sigma_min"}, 10),
        ("dpmsolver++", {"final_sigmas_type": "sigma_min", "lower_order_final": False}, 10),
        ("dpmsolver++", {"final_sigmas_type": "sigma_min"}, 25),
        ("dpmsolver++", {"final_sigmas_type": "sigma_min", "euler_at_final": True}, 25),
        ("dpmsolver++", {"solver_order": 1}, 10),
        ("dpmsolver++", {"solver_type": "bh2"}, 10),
        ("dpmsolver++", {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1}, 10),
        ("dpmsolver++", {}, 1),
        ("dpmsolver++", {}, 14),
        ("dpmsolver++", {}, 50),
    ],
)
def test_options_act_as_in_diffusers(name: str, changes: dict[str, Any], steps: int) -> None:
    values = BASE | changes
    assert_same_as_oracle(own_config(name, values), oracle(name, values), steps)


@pytest.mark.parametrize("target", list(CLASSES))
@pytest.mark.parametrize("source", list(CLASSES))
@pytest.mark.parametrize("spacing", [None, "leading", "trailing"])
def test_override_by_name_matches_from_config(
    source: str, target: str, spacing: str | None
) -> None:
    """Absent options take the defaults of the chosen scheduler, present ones travel along."""
    values = BASE | ({} if spacing is None else {"timestep_spacing": spacing})
    loaded = oracle(source, values)
    theirs = getattr(diffusers, CLASSES[target]).from_config(loaded.config)
    mine = own_config(source, values, override=target)
    assert_same_as_oracle(mine, theirs, 25)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", list(CLASSES))
def test_timesteps_equal_for_any_number_of_steps(name: str, spacing: str) -> None:
    values = BASE | {"timestep_spacing": spacing}
    config, theirs = own_config(name, values), oracle(name, values)
    for steps in range(1, 201):
        theirs.set_timesteps(steps)
        expected = theirs.timesteps.tolist()
        if expected[-1] < 0:
            # Rounding adds a step at timestep -1 in diffusers; there is no such noise level.
            expected = expected[:-1]
        assert make_plan(config, steps).timesteps.tolist() == expected


def test_values_marked_as_defaults_are_not_carried_over() -> None:
    values = BASE | {"timestep_spacing": "leading", "_use_default_values": ["timestep_spacing"]}
    assert own_config("pndm", values, override="euler").timestep_spacing == "linspace"


def test_clipping_stays_off_where_the_file_does_not_ask_for_it() -> None:
    values = {key: value for key, value in BASE.items() if key != "clip_sample"}
    assert not own_config("pndm", values, override="ddim").clip_sample


@pytest.mark.parametrize(
    ("name", "changes", "mentions"),
    [
        ("ddim", {"thresholding": True}, "thresholding"),
        ("ddim", {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
        ("ddim", {"prediction_type": "sample"}, "prediction_type"),
        ("ddim", {"timestep_spacing": "cubic"}, "timestep_spacing"),
        ("ddim", {"beta_start": "small"}, "beta_start"),
        ("ddim", {"num_train_timesteps": True}, "num_train_timesteps"),
        ("ddim", {"trained_betas": []}, "trained_betas"),
        ("ddim", {"brand_new_option": True}, "brand_new_option"),
        ("pndm", {"skip_prk_steps": False}, "skip_prk_steps"),
        ("euler", {"use_karras_sigmas": True}, "use_karras_sigmas"),
        ("euler", {"interpolation_type": "log_linear"}, "interpolation_type"),
        ("dpmsolver++", {"solver_order": 3}, "solver_order"),
        ("dpmsolver++", {"algorithm_type": "sde-dpmsolver++"}, "algorithm_type"),
        ("dpmsolver++", {"solver_type": "heun"}, "solver_type"),
        ("dpmsolver++", {"use_lu_lambdas": True}, "use_lu_lambdas"),
    ],
)
def test_options_that_are_not_implemented_are_refused(
    name: str, changes: dict[str, Any], mentions: str
) -> None:
    with pytest.raises(BundleError, match=mentions):
        own_config(name, BASE | changes)


def test_pndm_without_skip_prk_steps_in_its_own_file_is_refused() -> None:
    values = {key: value for key, value in BASE.items() if key != "skip_prk_steps"}
    with pytest.raises(BundleError, match="skip_prk_steps"):
        own_config("pndm", values)
    assert own_config("ddim", values, override="pndm").scheduler == "pndm"


def test_options_of_other_schedulers_are_left_alone() -> None:
    assert own_config("ddim", BASE | {"use_karras_sigmas": True}).scheduler == "ddim"


@pytest.mark.parametrize("name", list(CLASSES))
def test_files_written_by_diffusers_are_read(name: str, tmp_path: Path) -> None:
    """A saved scheduler spells out every option; none of them may be taken for an unknown one."""
    scheduler = getattr(diffusers, CLASSES[name])(
        **({"skip_prk_steps": True} if name == "pndm" else {})
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler.save_config(tmp_path)
    values = json.loads((tmp_path / "scheduler_config.json").read_text())
    for target in SCHEDULERS:
        assert read_scheduler_config(values, target, "test").scheduler == target


def test_unknown_scheduler_names_say_what_is_available() -> None:
    with pytest.raises(BundleError, match=r"LCMScheduler.*dpmsolver"):
        read_scheduler_config({"_class_name": "LCMScheduler"}, None, "file")
    with pytest.raises(InputError, match=r"heun.*dpmsolver"):
        read_scheduler_config({"_class_name": "DDIMScheduler"}, "heun", "file")


@pytest.mark.parametrize("name", list(CLASSES))
@pytest.mark.parametrize("steps", [0, 1001])
def test_steps_outside_the_training_range_are_refused(name: str, steps: int) -> None:
    with pytest.raises(InputError, match="between 1 and 1000"):
        make_plan(own_config(name, BASE), steps)


def test_too_many_steps_for_the_spacing_are_refused() -> None:
    with pytest.raises(InputError, match="fewer steps"):
        make_plan(own_config("ddim", BASE), 1000)
    with pytest.raises(InputError, match="fewer steps"):
        make_plan(own_config("dpmsolver++", BASE | {"timestep_spacing": "leading"}), 1000)


def test_a_run_can_be_abandoned_and_leaves_nothing_behind() -> None:
    noise = np.ones((1, 4, 4, 4), np.float32)
    plan = make_plan(own_config("pndm", BASE), 10)
    whole = list(sample(plan, noise, predict_noise))
    interrupted = sample(plan, noise, predict_noise)
    next(interrupted)
    interrupted.close()  # type: ignore[attr-defined]
    again = list(sample(plan, noise, predict_noise))
    np.testing.assert_array_equal(again[-1], whole[-1])
