"""Calibration: what is recorded, where on the trajectory, and that it is what the UNet saw."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdcompress.calibrate import ModelInputs, calibrate, stratified_steps, write_rows
from sdcompress.errors import CalibrationError
from sdcompress.prompts import Prompt
from sdcompress.recipe import Calibrate
from sdcompress.runtime import Job, Pipeline, Settings

SETTINGS = Settings(steps=6, guidance_scale=5.0, scheduler="dpmsolver++")
PROMPTS = (Prompt("a green star"), Prompt("a large red circle", negative="a blue ring"))


@given(data=st.data(), prompts=st.integers(1, 40), steps=st.integers(1, 60), seed=st.integers(0, 9))
def test_steps_are_stratified_over_the_trajectory(
    data: st.DataObject, prompts: int, steps: int, seed: int
) -> None:
    calls = data.draw(st.integers(1, prompts * steps))
    plan = stratified_steps(calls, prompts, steps, seed)
    recorded = [step for wanted in plan for step in wanted]
    assert len(plan) == prompts
    assert len(recorded) == calls  # so no prompt records a step twice
    assert all(0 <= step < steps for step in recorded)
    # Any two stretches of equal length hold nearly the same number of records.
    thirds = Counter(step * 3 // steps for step in recorded)
    if steps % 3 == 0 and calls >= 3 * prompts:
        assert max(thirds.values()) - min(thirds.values()) <= 2 * prompts


def test_more_calls_than_there_are_is_refused() -> None:
    with pytest.raises(CalibrationError, match=r"make only 20: raise calibrate\.prompts"):
        stratified_steps(21, prompts=2, steps=10, seed=0)


@pytest.fixture(scope="module")
def recorded(baseline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibration")
    pipeline = Pipeline.load(baseline, execution_precision="f32")
    options = Calibrate(prompt_set="demo", prompts=2, samples=12, seed=3)
    done: list[int] = []
    result = calibrate(pipeline, PROMPTS, options, SETTINGS, folder, lambda d, _: done.append(d))
    assert result.samples == 12
    assert done == list(range(13))  # two prompts of six UNet calls
    return folder


def test_a_killed_recording_goes_on_with_the_next_prompt(
    recorded: Path, baseline: Path, tmp_path: Path
) -> None:
    pipeline = Pipeline.load(baseline, execution_precision="f32")
    options = Calibrate(prompt_set="demo", prompts=2, samples=12, seed=3)

    def stop(done: int, _total: int) -> None:
        if done == 8:  # in the middle of the second prompt
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(pipeline, PROMPTS, options, SETTINGS, tmp_path, stop)
    (first,) = (tmp_path / "recorded").glob("*.npz")
    with np.load(first) as arrays:
        kept = dict(arrays)
    np.savez(first, **(kept | {"latents": np.full_like(kept["latents"], 7)}))  # a mark
    done: list[int] = []
    calibrate(pipeline, PROMPTS, options, SETTINGS, tmp_path, lambda d, _: done.append(d))
    assert done == list(range(6, 13))
    latents = [one["latent_sample"] for one in ModelInputs(tmp_path, "vae_decoder")]
    assert (latents[0] == 7).all()  # the first prompt was read back, not drawn again
    whole = list(ModelInputs(recorded, "unet"))
    for mine, other in zip(ModelInputs(tmp_path, "unet"), whole, strict=True):
        np.testing.assert_allclose(mine["sample"], other["sample"], atol=1e-5)


def test_both_branches_are_recorded_with_their_own_text(recorded: Path, baseline: Path) -> None:
    from datasets import Dataset

    rows = list(Dataset.load_from_disk(recorded / "unet").with_format("numpy"))
    assert Counter(row["branch"] for row in rows) == {"unconditional": 6, "conditional": 6}
    pipeline = Pipeline.load(baseline, execution_precision="f32")
    for prompt in PROMPTS:
        unconditional, conditional = pipeline.encode([prompt.negative or "", prompt.text])
        texts = {"unconditional": unconditional, "conditional": conditional}
        for row in rows:
            if row["prompt"] == prompt.text:
                expected = texts[str(row["branch"])]
                np.testing.assert_allclose(row["encoder_hidden_states"], expected, atol=1e-5)


def test_recorded_latents_lie_on_the_trajectory(recorded: Path, baseline: Path) -> None:
    from datasets import Dataset

    pipeline = Pipeline.load(baseline, execution_precision="f32")
    seen: list[np.ndarray] = []

    def unet(sample: np.ndarray, timestep: float, text: np.ndarray) -> np.ndarray:
        seen.append(sample[0].copy())
        return pipeline.unet(sample, timestep, text)

    unconditional, conditional = pipeline.encode(["", PROMPTS[0].text])
    pipeline.denoise(
        pipeline.begin(Job(PROMPTS[0].text, seed=3), SETTINGS),
        conditional[None],
        unconditional[None],
        SETTINGS,
        unet=unet,
    )
    rows = Dataset.load_from_disk(recorded / "unet").with_format("numpy")
    mine = [row for row in rows if row["prompt"] == PROMPTS[0].text]
    assert len(mine) == 6
    for row in mine:
        np.testing.assert_allclose(row["sample"], seen[int(row["step"])], atol=1e-4)


def test_layers_may_be_remembered_on_the_way_to_what_is_recorded(
    recorded: Path, baseline: Path, tmp_path: Path
) -> None:
    pipeline = Pipeline.load(baseline, execution_precision="f32")
    options = Calibrate(prompt_set="demo", prompts=2, samples=12, cache_interval=3, seed=3)
    assert calibrate(pipeline, PROMPTS, options, SETTINGS, tmp_path).samples == 12
    quick = [one["latent_sample"] for one in ModelInputs(tmp_path, "vae_decoder")]
    whole = [one["latent_sample"] for one in ModelInputs(recorded, "vae_decoder")]
    drawn = pipeline.denoise_jobs(
        [Job(PROMPTS[0].text, seed=3)], replace(SETTINGS, cache_interval=3)
    )
    np.testing.assert_allclose(quick[0] * pipeline.scaling_factor, drawn, atol=1e-4)
    assert not np.allclose(quick[0], whole[0], atol=1e-2)
    # All timesteps are recorded, those at which the whole UNet was not asked, too.
    mine, others = (ModelInputs(folder, "unet").timesteps() for folder in (tmp_path, recorded))
    np.testing.assert_array_equal(mine, others)


def test_inputs_come_as_the_models_take_them_and_can_be_read_twice(recorded: Path) -> None:
    import openvino as ov

    inputs = ModelInputs(recorded, "unet")
    assert len(inputs) == 12
    first, again = (list(inputs) for _ in range(2))
    np.testing.assert_array_equal(first[5]["sample"], again[5]["sample"])
    assert first[0]["sample"].shape[0] == 1
    for component in ("text_encoder", "vae_decoder"):
        assert len(ModelInputs(recorded, component)) > 0
    assert ov.Type(first[0]["timestep"].dtype) == ov.Type.i64


def test_a_fixed_batch_gets_both_branches_of_one_call(recorded: Path) -> None:
    inputs = list(ModelInputs(recorded, "unet", batch=2))
    singles = list(ModelInputs(recorded, "unet"))
    assert len(inputs) == 6
    for pair, first, second in zip(inputs, singles[::2], singles[1::2], strict=True):
        assert pair["sample"].shape[0] == 2
        assert pair["timestep"].shape == (1,)
        assert first["timestep"] == second["timestep"] == pair["timestep"]
        np.testing.assert_array_equal(
            pair["encoder_hidden_states"][1:], second["encoder_hidden_states"]
        )


@pytest.mark.parametrize("fault", [CalibrationError("not finite"), OSError(28, "No space left")])
def test_a_fault_in_a_later_row_is_told_as_it_is(tmp_path: Path, fault: Exception) -> None:
    def rows() -> Iterator[dict[str, int]]:
        yield {"step": 1}
        raise fault

    with pytest.raises(type(fault), match=str(fault.args[-1])):
        write_rows(rows(), tmp_path / "unet")


def test_the_shipped_sets_are_disjoint_and_large_enough() -> None:
    from sdcompress.prompts import prompt_file

    texts = {}
    for name in ("demo", "demo_evaluation", "sd", "sd_evaluation"):
        lines = prompt_file(name).read_text(encoding="utf-8").splitlines()
        texts[name] = [json.loads(line)["prompt"] for line in lines]
        assert len(set(texts[name])) == len(texts[name])
    assert len(texts["sd"]) >= 256
    assert not set(texts["sd"]) & set(texts["sd_evaluation"])
    assert not set(texts["demo"]) & set(texts["demo_evaluation"])
