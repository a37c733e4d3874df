"""Samplers against diffusers: the same timesteps, the same trajectory."""

import inspect
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_model import SCHEDULER

from sdcompress.cli import drawing
from sdcompress.recipe import Sampling
from sdcompress.runtime.arrays import Float32
from sdcompress.runtime.errors import BundleError, InputError
from sdcompress.runtime.schedulers import (
    SCHEDULERS,
    Plan,
    SchedulerConfig,
    class_of,
    make_plan,
    read_scheduler_config,
    walk,
)
from sdcompress.runtime.schedulers.levels import signal_and_noise
from sdcompress.runtime.schedulers.unscaled import lagrange_integrals

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

NAMES = list(SCHEDULERS)
STOCHASTIC = {"ddpm", "euler_ancestral", "sde-dpmsolver++", "lcm"}
BASE: dict[str, Any] = {k: v for k, v in SCHEDULER.items() if k != "_class_name"}
SPACINGS = ("leading", "linspace", "trailing")


def predict_noise(x: Float32, timestep: float) -> Float32:
    """A fixed, smooth predictor that depends on every input, cheap and the same for both sides."""
    return np.tanh(x * 0.7 + np.float32(np.sin(timestep / 130))) * np.float32(0.9)


def no_noise() -> Float32:
    raise AssertionError("a deterministic sampler asked for noise")


def named_values(name: str, values: dict[str, Any]) -> dict[str, Any]:
    """The options as the class of diffusers needs them."""
    forced = {"algorithm_type": "sde-dpmsolver++"} if name == "sde-dpmsolver++" else {}
    return {"_class_name": class_of(name)} | values | forced


def own_config(name: str, values: dict[str, Any], override: str | None = None) -> SchedulerConfig:
    return read_scheduler_config(named_values(name, values), override or name, "test")


def oracle(name: str, values: dict[str, Any]) -> Any:
    return getattr(diffusers, class_of(name)).from_config(named_values(name, values))


def oracle_from(loaded: Any, name: str) -> Any:
    """Another scheduler made from a loaded one, as users of diffusers exchange them."""
    forced = {"algorithm_type": "sde-dpmsolver++"} if name == "sde-dpmsolver++" else {}
    return getattr(diffusers, class_of(name)).from_config(loaded.config, **forced)


def oracle_trajectory(
    scheduler: Any, steps: int, noise: Float32, begin: int = 0, **options: Any
) -> tuple[list[float], Any]:
    scheduler.set_timesteps(steps)
    if begin and isinstance(scheduler, diffusers.LMSDiscreteScheduler):
        # Told to begin later, it would count calls before that as if it had made them.
        scheduler.sigmas, scheduler.timesteps = (
            scheduler.sigmas[begin:],
            scheduler.timesteps[begin:],
        )
        begin = 0
    generator = torch.Generator().manual_seed(1)
    if "generator" in inspect.signature(scheduler.step).parameters:
        options["generator"] = generator
    timesteps = scheduler.timesteps[begin:]
    if hasattr(scheduler, "set_begin_index"):  # as the pipelines do
        scheduler.set_begin_index(begin)
    x = torch.from_numpy(noise)
    trajectory = []
    for t in timesteps:
        scaled = scheduler.scale_model_input(x, t)
        output = torch.from_numpy(predict_noise(scaled.numpy(), float(t)))
        x = scheduler.step(output, t, x, **options).prev_sample
        trajectory.append(x.numpy())
    return timesteps.tolist(), trajectory


def own_trajectory(plan: Plan, x: Float32, name: str) -> list[Float32]:
    generator = torch.Generator().manual_seed(1)

    def injected() -> Float32:
        drawn: Float32 = torch.randn(x.shape, generator=generator).numpy()
        return drawn

    random = name in STOCHASTIC or plan.eta > 0
    steps = walk(plan, x, predict_noise, injected if random else no_noise)
    trajectory = [next(steps)]
    for _ in range(len(plan) - 1):
        trajectory.append(steps.send(trajectory[-1]))
    with pytest.raises(StopIteration):
        steps.send(trajectory[-1])
    return trajectory


def assert_same_as_oracle(
    config: SchedulerConfig,
    scheduler: Any,
    steps: int,
    *,
    strength: float = 1.0,
    eta: float = 0.0,
) -> None:
    noise = np.random.default_rng(5).standard_normal((1, 4, 8, 8), dtype=np.float32)
    plan = make_plan(config, steps, strength=strength, eta=eta)
    begin = plan.skipped
    options = {"eta": eta} if eta else {}
    scheduler.set_timesteps(steps)
    x = noise if begin else np.asarray(noise * np.float32(scheduler.init_noise_sigma))
    timesteps, expected = oracle_trajectory(scheduler, steps, x, begin, **options)
    # Whole timesteps are equal; fractional ones may differ in the last digit of single precision.
    tolerance = 0.0 if all(timestep % 1 == 0 for timestep in timesteps) else 1e-4
    np.testing.assert_allclose(plan.timesteps, timesteps, rtol=0, atol=tolerance)
    random = config.algorithm_type == "sde-dpmsolver++"
    name = "sde-dpmsolver++" if random else config.scheduler
    actual = own_trajectory(plan, noise * (1.0 if begin else plan.initial_scale), name)
    assert len(actual) == len(expected)
    for index, (mine, theirs) in enumerate(zip(actual, expected, strict=True)):
        assert mine.dtype == np.float32
        error = np.abs(mine - theirs).max() / np.abs(theirs).max()
        assert error < 1e-4, f"step {index + 1}: relative error {error:.2e}"


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", NAMES)
def test_trajectory_of_25_steps_is_that_of_diffusers(
    name: str, prediction_type: str, spacing: str
) -> None:
    values = BASE | {"prediction_type": prediction_type, "timestep_spacing": spacing}
    assert_same_as_oracle(own_config(name, values), oracle(name, values), 25)


RESPACED = ["lms", "euler", "heun", "dpmsolver++", "sde-dpmsolver++", "dpmsolver++-singlestep",
            "unipc"]  # fmt: skip
ZERO_SNR = ["ddim", "ddpm", "euler", "euler_ancestral", "dpmsolver++", "sde-dpmsolver++", "unipc",
            "lcm"]  # fmt: skip


@pytest.mark.parametrize("option", ["use_karras_sigmas", "use_exponential_sigmas"])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", RESPACED)
def test_respaced_levels_are_those_of_diffusers(
    name: str, prediction_type: str, spacing: str, option: str
) -> None:
    values = BASE | {"prediction_type": prediction_type, "timestep_spacing": spacing, option: True}
    assert_same_as_oracle(own_config(name, values), oracle(name, values), 25)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", ZERO_SNR)
def test_zero_terminal_snr_is_that_of_diffusers(name: str, spacing: str) -> None:
    values = BASE | {"timestep_spacing": spacing, "prediction_type": "v_prediction"}
    values["rescale_betas_zero_snr"] = True
    assert_same_as_oracle(own_config(name, values), oracle(name, values), 25)


@pytest.mark.parametrize("strength", [0.1, 0.55, 0.8])
@pytest.mark.parametrize("name", NAMES)
def test_a_later_beginning_is_that_of_diffusers(name: str, strength: float) -> None:
    assert_same_as_oracle(own_config(name, BASE), oracle(name, BASE), 20, strength=strength)


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_fresh_noise_in_ddim_is_that_of_diffusers(prediction_type: str, eta: float) -> None:
    values = BASE | {"prediction_type": prediction_type}
    assert_same_as_oracle(own_config("ddim", values), oracle("ddim", values), 25, eta=eta)


@pytest.mark.parametrize(
    ("name", "changes", "steps"),
    [
        ("ddim", {"set_alpha_to_one": True}, 25),
        ("ddim", {"clip_sample": True, "clip_sample_range": 0.8}, 12),
        ("ddim", {"beta_schedule": "squaredcos_cap_v2"}, 10),
        ("ddim", {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}, 10),
        ("ddpm", {"variance_type": "fixed_large"}, 10),
        ("ddpm", {"clip_sample": True, "clip_sample_range": 0.8}, 10),
        ("pndm", {"set_alpha_to_one": True}, 25),
        ("pndm", {"trained_betas": np.linspace(0.001, 0.02, 1000).tolist()}, 10),
        ("pndm", {}, 1),
        ("pndm", {}, 2),
        ("pndm", {"steps_offset": 0, "timestep_spacing": "leading"}, 3),
        ("lms", {}, 1),
        ("lms", {}, 3),
        ("euler", {"final_sigmas_type": "sigma_min"}, 10),
        ("euler", {}, 1),
        ("euler_ancestral", {}, 1),
        ("heun", {"clip_sample": True, "clip_sample_range": 0.8}, 10),
        ("heun", {}, 1),
        ("dpmsolver++", {"final_sigmas_type": "sigma_min"}, 10),
        ("dpmsolver++", {"final_sigmas_type": "sigma_min", "lower_order_final": False}, 10),
        ("dpmsolver++", {"final_sigmas_type": "sigma_min"}, 25),
        ("dpmsolver++", {"final_sigmas_type": "sigma_min", "euler_at_final": True}, 25),
        ("dpmsolver++", {"solver_order": 1}, 10),
        ("dpmsolver++", {"solver_order": 3}, 10),
        ("dpmsolver++", {"solver_order": 3, "final_sigmas_type": "sigma_min"}, 25),
        ("dpmsolver++", {"solver_type": "heun"}, 10),
        ("dpmsolver++", {"solver_type": "bh2"}, 10),
        ("dpmsolver++", {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"}, 10),
        ("dpmsolver++", {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1}, 10),
        ("dpmsolver++", {"beta_schedule": "squaredcos_cap_v2", "use_karras_sigmas": True}, 10),
        ("dpmsolver++", {}, 1),
        ("dpmsolver++", {}, 14),
        ("dpmsolver++", {}, 50),
        ("sde-dpmsolver++", {"solver_order": 1}, 10),
        ("dpmsolver++-singlestep", {"solver_order": 1}, 10),
        ("dpmsolver++-singlestep", {"solver_order": 3}, 9),
        ("dpmsolver++-singlestep", {"solver_order": 3}, 10),
        ("dpmsolver++-singlestep", {"solver_order": 3}, 11),
        ("dpmsolver++-singlestep", {"solver_order": 3, "solver_type": "heun"}, 10),
        ("dpmsolver++-singlestep", {"solver_type": "heun"}, 10),
        ("dpmsolver++-singlestep", {"final_sigmas_type": "sigma_min"}, 10),
        (
            "dpmsolver++-singlestep",
            {"final_sigmas_type": "sigma_min", "solver_order": 3, "lower_order_final": True},
            12,
        ),
        ("dpmsolver++-singlestep", {"algorithm_type": "sde-dpmsolver++"}, 10),
        ("unipc", {"solver_order": 1}, 10),
        ("unipc", {"solver_order": 3}, 10),
        ("unipc", {"solver_type": "bh1", "final_sigmas_type": "sigma_min"}, 10),
        ("unipc", {"disable_corrector": [0, 1]}, 10),
        ("unipc", {"final_sigmas_type": "sigma_min", "lower_order_final": False}, 10),
        ("unipc", {"final_sigmas_type": "sigma_min", "use_karras_sigmas": True}, 10),
        ("lcm", {"original_inference_steps": 20}, 4),
        ("lcm", {"timestep_scaling": 1.0}, 1),
        ("lcm", {"clip_sample": True, "clip_sample_range": 0.8}, 8),
    ],
)
def test_options_act_as_in_diffusers(name: str, changes: dict[str, Any], steps: int) -> None:
    values = BASE | changes
    assert_same_as_oracle(own_config(name, values), oracle(name, values), steps)


def truth(plan: Plan, clean: Float32, noise: Float32) -> Any:
    """A perfect network: it knows the noise in a sample of `clean`, whatever its level."""
    levels = dict(zip(plan.timesteps.tolist(), plan.asked.tolist(), strict=True))

    def predict(x: Float32, timestep: float) -> Float32:
        a, s = signal_and_noise(levels[timestep])
        return ((x - a * clean) / s).astype(np.float32)

    return predict


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(NAMES),
    steps=st.integers(1, 50),
    spacing=st.sampled_from(SPACINGS),
    beta_start=st.floats(1e-4, 2e-3),
    ratio=st.floats(2, 20),
    schedule=st.sampled_from(["linear", "scaled_linear"]),
)
def test_with_a_perfect_network_every_sampler_ends_at_the_clean_latents(
    name: str, steps: int, spacing: str, beta_start: float, ratio: float, schedule: str
) -> None:
    # Where stride and spacing do not agree, DDIM and PNDM ask at other levels than they step to.
    strided = name in ("ddim", "pndm")
    values = BASE | {
        "timestep_spacing": "leading" if strided else spacing,
        "beta_start": beta_start,
        "beta_end": beta_start * ratio,
        "beta_schedule": schedule,
        "set_alpha_to_one": True,
        "timestep_scaling": 1e6,
    }
    config = own_config(name, values)
    plan = make_plan(config, steps)
    assert (np.diff(plan.timesteps) <= 0).all()
    assert (np.diff(plan.asked) <= 0).all()
    assert (plan.next_sigmas < plan.sigmas).all()
    random = np.random.default_rng(steps)
    clean, noise = random.standard_normal((2, 1, 4, 4, 4), dtype=np.float32)
    x = plan.noised(clean, noise, 0)
    predict = truth(plan, clean, noise)
    walking = walk(plan, x, predict, lambda: random.standard_normal(x.shape, dtype=np.float32))
    x = next(walking)
    for _ in range(len(plan) - 1):
        x = walking.send(x)
    assert plan.next_sigmas[-1] == 0
    assert np.abs(x - clean).max() < 2e-3


def test_lagrange_integrals_are_those_of_numerical_integration() -> None:
    from scipy.integrate import quad

    points, end = [9.1, 7.3, 6.9, 2.0], 5.5
    for index, weight in enumerate(lagrange_integrals(points, end)):
        others = points[:index] + points[index + 1 :]

        def basis(x: float, index: int = index, others: list[float] = others) -> float:
            return float(np.prod([(x - other) / (points[index] - other) for other in others]))

        assert weight == pytest.approx(quad(basis, points[0], end)[0], rel=1e-9)


def test_recipes_know_every_scheduler() -> None:
    for name in NAMES:
        recipe = Sampling(scheduler=name, steps=7)  # type: ignore[arg-type]
        assert recipe.unet_calls == len(make_plan(own_config(name, BASE), 7))
    assert list(drawing.SCHEDULERS) == NAMES


@pytest.mark.parametrize("target", NAMES)
@pytest.mark.parametrize("source", ["ddim", "pndm", "euler", "dpmsolver++", "unipc"])
@pytest.mark.parametrize("spacing", [None, "leading", "trailing"])
def test_override_by_name_matches_from_config(
    source: str, target: str, spacing: str | None
) -> None:
    """Absent options take the defaults of the chosen scheduler, present ones travel along."""
    values = BASE | ({} if spacing is None else {"timestep_spacing": spacing})
    loaded = oracle(source, values)
    theirs = oracle_from(loaded, target)
    mine = own_config(source, values, override=target)
    assert_same_as_oracle(mine, theirs, 25)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", NAMES)
def test_timesteps_equal_for_any_number_of_steps(name: str, spacing: str) -> None:
    values = BASE | {"timestep_spacing": spacing}
    config, theirs = own_config(name, values), oracle(name, values)
    for steps in range(1, 51 if name == "lcm" else 201):
        theirs.set_timesteps(steps)
        expected = theirs.timesteps.tolist()
        if expected[-1] < 0:
            # Rounding adds a step at timestep -1 in diffusers; there is no such noise level.
            expected = [timestep for timestep in expected if timestep >= 0]
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
        ("ddim", {"rescale_betas_zero_snr": True}, "v_prediction"),
        ("ddim", {"prediction_type": "sample"}, "prediction_type"),
        ("ddim", {"timestep_spacing": "cubic"}, "timestep_spacing"),
        ("ddim", {"beta_start": "small"}, "beta_start"),
        ("ddim", {"num_train_timesteps": True}, "num_train_timesteps"),
        ("ddim", {"trained_betas": []}, "trained_betas"),
        ("ddim", {"trained_betas": ["a"]}, "trained_betas"),
        ("ddim", {"beta_start": -1}, "beta_start"),
        ("ddim", {"num_train_timesteps": 10**12}, "num_train_timesteps"),
        ("ddim", {"_use_default_values": 5}, "_use_default_values"),
        ("ddim", {"brand_new_option": True}, "brand_new_option"),
        ("pndm", {"skip_prk_steps": False}, "skip_prk_steps"),
        ("euler", {"use_beta_sigmas": True}, "use_beta_sigmas"),
        ("euler", {"use_karras_sigmas": True, "use_exponential_sigmas": True}, "exclude"),
        ("ddpm", {"variance_type": "learned"}, "variance_type"),
        ("euler", {"interpolation_type": "log_linear"}, "interpolation_type"),
        ("dpmsolver++", {"solver_order": 4}, "solver_order"),
        ("dpmsolver++", {"algorithm_type": "dpmsolver"}, "algorithm_type"),
        ("dpmsolver++", {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}, "solver_order"),
        ("dpmsolver++", {"solver_type": "simpson"}, "solver_type"),
        ("unipc", {"predict_x0": False}, "predict_x0"),
        ("unipc", {"disable_corrector": ["first"]}, "disable_corrector"),
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


@pytest.mark.parametrize("name", NAMES)
def test_files_written_by_diffusers_are_read(name: str, tmp_path: Path) -> None:
    """A saved scheduler spells out every option; none of them may be taken for an unknown one."""
    scheduler = getattr(diffusers, class_of(name))(
        **({"skip_prk_steps": True} if name == "pndm" else {})
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler.save_config(tmp_path)
    values = json.loads((tmp_path / "scheduler_config.json").read_text())
    for target in SCHEDULERS:
        assert read_scheduler_config(values, target, "test").scheduler == target


def test_unknown_scheduler_names_say_what_is_available() -> None:
    with pytest.raises(BundleError, match=r"EDMEulerScheduler.*dpmsolver"):
        read_scheduler_config({"_class_name": "EDMEulerScheduler"}, None, "file")
    with pytest.raises(InputError, match=r"best.*dpmsolver"):
        read_scheduler_config({"_class_name": "DDIMScheduler"}, "best", "file")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [0, 1001])
def test_steps_outside_the_training_range_are_refused(name: str, steps: int) -> None:
    with pytest.raises(InputError, match="between 1 and 1000"):
        make_plan(own_config(name, BASE), steps)


def test_too_many_steps_for_the_spacing_are_refused() -> None:
    with pytest.raises(InputError, match="fewer steps"):
        make_plan(own_config("ddim", BASE), 1000)
    with pytest.raises(InputError, match="fewer steps"):
        make_plan(own_config("dpmsolver++", BASE | {"timestep_spacing": "leading"}), 1000)


def test_what_a_scheduler_cannot_do_is_refused() -> None:
    with pytest.raises(InputError, match="at most 50"):
        make_plan(own_config("lcm", BASE), 51)
    with pytest.raises(InputError, match="only ddim knows it"):
        make_plan(own_config("euler", BASE), 10, eta=0.5)
    with pytest.raises(InputError, match="strength"):
        make_plan(own_config("euler", BASE), 4, strength=0.2)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_can_be_abandoned_and_leaves_nothing_behind(name: str) -> None:
    noise = np.ones((1, 4, 4, 4), np.float32)
    plan = make_plan(own_config(name, BASE), 10)
    whole = own_trajectory(plan, noise, name)
    interrupted = walk(plan, noise, predict_noise, lambda: noise)
    next(interrupted)
    interrupted.close()
    np.testing.assert_array_equal(own_trajectory(plan, noise, name)[-1], whole[-1])
