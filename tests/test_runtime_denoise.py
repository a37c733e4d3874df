"""The loop and its seam: what the network is asked, how often, and what happens to its answers."""

from typing import Any

import numpy as np
import pytest
from toy_model import SCHEDULER

from sdcompress.runtime.arrays import Float32
from sdcompress.runtime.denoise import Step, denoise
from sdcompress.runtime.errors import CancelledError, InputError, NotFiniteError
from sdcompress.runtime.schedulers import SCHEDULERS, Plan, make_plan, read_scheduler_config, walk

LATENTS = np.random.default_rng(0).standard_normal((2, 4, 4, 4), dtype=np.float32)
CONDITIONAL = np.full((2, 77, 8), 0.5, np.float32)
UNCONDITIONAL = np.full((1, 77, 8), -0.25, np.float32)


class RecordingUnet:
    """Answers with a function of sample and text, and remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[Float32, float, Float32]] = []

    def __call__(self, x: Float32, timestep: float, text: Float32) -> Float32:
        self.calls.append((x, timestep, text))
        return x * np.float32(0.5) + text.mean(axis=(1, 2)).reshape(-1, 1, 1, 1)


def plan(name: str = "ddim", steps: int = 4) -> Plan:
    return make_plan(read_scheduler_config(SCHEDULER, name, "test"), steps)


def fresh_noise() -> Float32:
    return np.random.default_rng(3).standard_normal(LATENTS.shape, dtype=np.float32)


def unguided(unet: Any, plan: Plan, latents: Float32 = LATENTS, **options: Any) -> Float32:
    return denoise(
        unet,
        plan,
        latents,
        CONDITIONAL,
        None,
        guidance_scale=1.0,
        fresh_noise=fresh_noise,
        **options,
    )


def test_both_branches_go_through_one_batch_unconditional_first() -> None:
    unet = RecordingUnet()
    denoise(
        unet,
        plan(),
        LATENTS,
        CONDITIONAL,
        UNCONDITIONAL,
        guidance_scale=7.5,
        fresh_noise=fresh_noise,
    )
    assert [timestep for _, timestep, _ in unet.calls] == [751.0, 501.0, 251.0, 1.0]
    x, _, text = unet.calls[0]
    np.testing.assert_array_equal(x, np.concatenate([LATENTS, LATENTS]))
    assert text[:, 0, 0].tolist() == [-0.25, -0.25, 0.5, 0.5]
    assert x.dtype == text.dtype == np.float32


def test_guidance_moves_away_from_the_unconditional_answer() -> None:
    actual = denoise(
        RecordingUnet(),
        plan(),
        LATENTS,
        CONDITIONAL,
        UNCONDITIONAL,
        guidance_scale=3.0,
        fresh_noise=fresh_noise,
    )

    def guided(x: Float32, _timestep: float) -> Float32:
        return x * np.float32(0.5) + np.float32(-0.25 + 3.0 * 0.75)

    walking = walk(plan(), LATENTS, guided, fresh_noise)
    expected = next(walking)
    for _ in range(3):
        expected = walking.send(expected)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_without_guidance_no_second_branch_is_computed() -> None:
    unet = RecordingUnet()
    unguided(
        unet,
        plan(),
    )
    assert {len(x) for x, _, _ in unet.calls} == {2}


def test_guidance_needs_unconditional_embeddings() -> None:
    with pytest.raises(InputError, match="unconditional"):
        denoise(
            RecordingUnet(),
            plan(),
            LATENTS,
            CONDITIONAL,
            None,
            guidance_scale=2.0,
            fresh_noise=fresh_noise,
        )


def test_a_wrong_number_of_embeddings_is_refused() -> None:
    three = np.zeros((3, 77, 8), np.float32)
    with pytest.raises(InputError, match="3 prompts, but there are 2 images"):
        denoise(
            RecordingUnet(),
            plan(),
            LATENTS,
            three,
            None,
            guidance_scale=1.0,
            fresh_noise=fresh_noise,
        )


@pytest.mark.parametrize(
    ("name", "calls"), [("ddim", 4), ("pndm", 5), ("heun", 7), ("dpmsolver++", 4)]
)
def test_every_call_is_reported(name: str, calls: int) -> None:
    seen: list[Step] = []
    result = unguided(
        RecordingUnet(),
        plan(name),
        on_step=seen.append,
    )
    assert [(step.done, step.calls) for step in seen] == [(i + 1, calls) for i in range(calls)]
    assert [step.timestep for step in seen] == plan(name).timesteps.tolist()
    np.testing.assert_array_equal(seen[-1].latents, result)


@pytest.mark.parametrize("name", ["ddim", "euler", "dpmsolver++"])
def test_the_estimate_of_a_perfect_network_is_the_clean_latents(name: str) -> None:
    clean = np.random.default_rng(8).standard_normal(LATENTS.shape, dtype=np.float32)
    whole = plan(name)
    levels = dict(zip(whole.timesteps.tolist(), whole.asked.tolist(), strict=True))

    def unet(x: Float32, timestep: float, _text: Float32) -> Float32:
        a = 1 / np.sqrt(1 + levels[timestep] ** 2)
        return ((x - a * clean) / (levels[timestep] * a)).astype(np.float32)

    seen: list[Step] = []
    unguided(
        unet,
        whole,
        whole.noised(clean, LATENTS, 0),
        on_step=seen.append,
    )
    for step in seen:
        np.testing.assert_allclose(step.clean, clean, atol=1e-3)


def test_a_callback_can_stop_the_run() -> None:
    unet = RecordingUnet()
    with pytest.raises(CancelledError, match="after 2 of 4 calls"):
        unguided(
            unet,
            plan(),
            on_step=lambda step: step.done == 2,
        )
    assert len(unet.calls) == 2


def test_what_is_blended_in_goes_on_to_the_next_call() -> None:
    unet = RecordingUnet()
    calls: list[int] = []

    def blend(latents: Float32, call: int) -> Float32:
        calls.append(call)
        return np.full_like(latents, call)

    result = unguided(
        unet,
        plan(),
        blend=blend,
    )
    assert calls == [1, 2, 3, 4]
    assert [float(x.flat[0]) for x, _, _ in unet.calls[1:]] == [1, 2, 3]
    assert (result == 4).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_stop_the_loop(bad: float) -> None:
    def unet(x: Float32, timestep: float, _text: Float32) -> Float32:
        return x * np.float32(bad if timestep == 501.0 else 0.5)

    with pytest.raises(NotFiniteError, match=r"predictions at timestep 501 .*precision f32"):
        unguided(
            unet,
            plan(),
        )


def test_inputs_are_left_as_they_were() -> None:
    before = LATENTS.copy()
    for name in SCHEDULERS:
        denoise(
            RecordingUnet(),
            plan(name),
            LATENTS,
            CONDITIONAL,
            UNCONDITIONAL,
            guidance_scale=7.5,
            fresh_noise=fresh_noise,
        )
    np.testing.assert_array_equal(LATENTS, before)
