"""Estimates before long work: what they say of a full-size model, and what they refuse."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import QUICK

from sdcompress import opening, preflight
from sdcompress import speed as machine_speed
from sdcompress.architecture import Architecture, PartSize
from sdcompress.cli import main
from sdcompress.errors import PreflightError
from sdcompress.memory import available_memory_bytes, left_in_groups
from sdcompress.preflight import (
    Estimate,
    StageEstimate,
    describe,
    estimate,
    estimate_sweep,
    require_room,
)
from sdcompress.recipe import Recipe, Runtime, load_recipe
from sdcompress.shipped import shipped_folder
from sdcompress.speed import Speed, measure_speed

# Stable Diffusion 2.1 base with 16-bit weights, 512 x 512; tests/test_architecture.py proves the
# reading of such figures.
SD21 = Architecture(
    text_encoder=PartSize(340_387_840, 680_775_680),
    unet=PartSize(865_910_724, 1_731_821_448),
    vae=PartSize(83_653_863, 167_307_726),
    text_encoder_macs=22.3e9,
    unet_macs=402.1e9,
    vae_decoder_macs=1257.3e9,
    unet_channels=620_936,
    pixels=512 * 512,
)
SPEED = Speed(f32=0.25e12, native=0.5e12, narrow=True)


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe(shipped_folder("recipes") / "sd21_base_int8.yaml")


def stage(expected: Estimate, name: str, detail: str = "") -> StageEstimate:
    (found,) = (one for one in expected.stages if one.name == name and detail in one.detail)
    return found


def test_other_components_are_calibrated_on_inputs_of_their_own(recipe: Recipe) -> None:
    compress = recipe.compress.model_copy(
        update={"text_encoder": recipe.compress.unet, "vae_decoder": recipe.compress.unet}
    )
    expected = estimate(recipe.model_copy(update={"compress": compress}), SD21, SPEED)
    details = {one.detail for one in expected.stages if one.name == "ranges"}
    assert details == {"text_encoder: 64 inputs", "unet: 128 inputs", "vae_decoder: 32 inputs"}
    unet = compress.unet.model_copy(update={"bias_correction": "accurate"})
    accurate = compress.model_copy(update={"unet": unet})
    expected = estimate(recipe.model_copy(update={"compress": accurate}), SD21, SPEED)
    assert "at least" in stage(expected, "compress", "unet").detail


def test_the_parts_of_a_run_are_all_there(recipe: Recipe) -> None:
    expected = estimate(recipe, SD21, SPEED)
    names = [one.name for one in expected.stages]
    compressions = ["compress", "ranges", "compress", "compress", "compress"]
    assert names == ["convert", "calibrate", *compressions, "draw", "sqnr", "layers", "measure"]
    assert expected.seconds == pytest.approx(sum(one.seconds for one in expected.stages))
    assert expected.peak_rss_bytes == max(one.peak_rss_bytes for one in expected.stages)
    text = "\n".join(describe(expected))
    assert "800 UNet calls" in text
    assert "GB of disk" in text


# Runs of benchmarks/preflight.py that docs/benchmarks.md tells of: seconds, GB of memory. What the
# first one took is of earlier ways to draw and to compare layers, so some of it is missing.
WITH_BF16 = Speed(f32=0.21e12, native=0.42e12, narrow=True), {
    "convert": (35, 3.09),
    "calibrate": (168, None),
    "compress": (92, 4.05),
    "ranges": (148, 4.37),
    "draw": (698, None),
    "sqnr": (244, None),
    "measure": (263, None),
}  # fmt: skip
WITHOUT_BF16 = Speed(f32=0.131e12, native=0.131e12, narrow=False), {
    "convert": (38, 3.10),
    "calibrate": (266, 5.90),
    "compress": (86, 4.03),
    "ranges": (294, 4.39),
    "draw": (921, 6.77),
    "sqnr": (239, 5.76),
    "layers": (83, 7.25),
    "measure": (441, 6.80),
}  # fmt: skip


@pytest.mark.parametrize(
    ("speed", "measured"), [WITH_BF16, WITHOUT_BF16], ids=["with BF16", "without"]
)
def test_the_estimate_is_near_what_was_measured(
    speed: Speed, measured: dict[str, tuple[float, float | None]]
) -> None:
    reduced = (
        "sampling.steps=16", "calibrate.prompts=2", "calibrate.samples=64",
        "evaluate.prompts=2", "evaluate.yardstick_prompts=2", "evaluate.sqnr_prompts=1",
        "evaluate.timed_images=1",
    )  # fmt: skip
    file = shipped_folder("recipes") / "sd21_base_int8.yaml"
    expected = estimate(load_recipe(file, reduced), SD21, speed)
    for name, (seconds, gigabytes) in measured.items():
        stages = [one for one in expected.stages if one.name == name]
        assert sum(one.seconds for one in stages) == pytest.approx(seconds, rel=0.25), name
        if gigabytes is not None:
            peak = max(one.peak_rss_bytes for one in stages)
            assert peak == pytest.approx(gigabytes * 1e9, rel=0.25), name
    assert expected.disk_bytes == pytest.approx(5.7e9, rel=0.25)


def test_a_faster_machine_is_expected_to_take_less_time(recipe: Recipe) -> None:
    slow = estimate(recipe, SD21, SPEED)
    fast = estimate(recipe, SD21, replace(SPEED, f32=2 * SPEED.f32, native=2 * SPEED.native))
    assert stage(fast, "calibrate").seconds < 0.55 * stage(slow, "calibrate").seconds
    assert stage(fast, "convert") == stage(slow, "convert")


def test_a_sweep_draws_the_baseline_once_and_every_candidate(recipe: Recipe) -> None:
    plain, quick = Runtime(), Runtime(cache_interval=3, decoder="tiny")

    def expected(*candidates: Runtime, turns: int = 1) -> dict[str, float]:
        found = estimate_sweep(recipe, SD21, SPEED, candidates=candidates, turns=turns)
        return {one.name: one.seconds for one in found.stages}

    one = expected(plain)
    assert list(one) == ["convert", "draw", "measure"]
    both, quicker = expected(plain, quick), expected(quick)
    # Drawing an evaluation without yardsticks is the same work.
    few = recipe.evaluate.model_copy(update={"yardstick_prompts": 0})
    alone = estimate(recipe.model_copy(update={"evaluate": few}), SD21, SPEED)
    assert one["draw"] == pytest.approx(stage(alone, "draw").seconds)
    assert one["draw"] < both["draw"] < one["draw"] + quicker["draw"]
    assert quicker["draw"] < one["draw"]
    assert both["measure"] == pytest.approx(one["measure"] + quicker["measure"])
    assert expected(plain, turns=3)["measure"] == pytest.approx(3 * one["measure"])
    skipped = estimate_sweep(recipe, SD21, SPEED, ("convert",), candidates=[plain], turns=1)
    assert [stage.name for stage in skipped.stages] == ["draw", "measure"]


def test_shortcuts_shorten_what_the_candidate_draws(recipe: Recipe) -> None:
    def drawing(**given: Any) -> float:
        changed = recipe.model_copy(update={"runtime": Runtime(**given)})
        return stage(estimate(changed, SD21, SPEED), "draw").seconds

    usual = drawing()
    half = {"steps": recipe.sampling.steps // 2, "cache_interval": 2, "guidance_end": 0.5}
    saved = {name: usual - drawing(**{name: value}) for name, value in half.items()}
    # Half of the calls; half of them nearly for nothing; a branch of two in half of them.
    assert saved["steps"] > saved["cache_interval"] > saved["guidance_end"] > 0
    assert saved["guidance_end"] == pytest.approx(saved["steps"] / 2, rel=0.1)


def test_what_is_finished_is_not_counted_again(recipe: Recipe) -> None:
    whole = estimate(recipe, SD21, SPEED)
    rest = estimate(recipe, SD21, SPEED, {"convert", "calibrate", "ranges", "compress"})
    assert {one.name for one in rest.stages} == {"draw", "sqnr", "layers", "measure"}
    assert rest.disk_bytes < 0.4 * whole.disk_bytes
    assert estimate(recipe, SD21, SPEED, preflight.STAGES).disk_bytes == 0


def test_larger_weights_and_more_inputs_need_more_room(recipe: Recipe) -> None:
    usual = estimate(recipe, SD21, SPEED)
    wide = recipe.model_copy(
        update={"convert": recipe.convert.model_copy(update={"weights": "fp32"})}
    )
    least = stage(usual, "convert").peak_rss_bytes + 1.5e9
    assert stage(estimate(wide, SD21, SPEED), "convert").peak_rss_bytes > least
    more = recipe.model_copy(
        update={"calibrate": recipe.calibrate.model_copy(update={"samples": 256})}
    )
    assert estimate(more, SD21, SPEED).disk_bytes > usual.disk_bytes + 0.8e9


def test_the_speed_of_this_machine_is_measured() -> None:
    speed = measure_speed()
    assert 1e9 < speed.f32 < 1e14
    assert 1e9 < speed.native < 1e14


def test_limits_of_all_control_groups_count(tmp_path: Path) -> None:
    inner = tmp_path / "user" / "service"
    inner.mkdir(parents=True)
    for folder, limit, used in ((tmp_path / "user", "5000", 3000), (inner, "max", 1000)):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text("anon 7\nactive_file 400\ninactive_file 100\n")
    left = left_in_groups
    assert list(left(tmp_path, "0::/user/service\n")) == [2500]
    assert list(left(tmp_path, "4:memory:/x\n0::/elsewhere\n")) == []
    (inner / "memory.max").write_text("600\n")
    assert list(left(tmp_path, "0::/user/service\n")) == [100, 2500]
    assert 0 < available_memory_bytes() < 2**50


def test_a_run_that_does_not_fit_says_what_is_missing(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = estimate(recipe, SD21, SPEED)
    mapping = stage(expected, "convert")
    assert mapping.needed_bytes < mapping.peak_rss_bytes - 1.5e9  # mapped files do not count
    monkeypatch.setattr(preflight, "available_memory_bytes", lambda: 4_000_000_000)
    with pytest.raises(PreflightError, match=r"memory: .* needs about .* 4\.0 GB are free"):
        require_room(expected, tmp_path / "not" / "there" / "yet")
    monkeypatch.setattr(preflight, "available_memory_bytes", lambda: 10**12)
    require_room(replace(expected, disk_bytes=1.0), tmp_path)
    with pytest.raises(PreflightError, match=r"disk: .*--output"):
        require_room(replace(expected, disk_bytes=1e18), tmp_path)


@pytest.mark.parametrize("command", ["quantize", "calibrate", "evaluate"])
def test_commands_refuse_with_exit_code_2(
    command: str, build_folder: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "SMALL_MODEL_BYTES", 0)
    monkeypatch.setattr(preflight, "available_memory_bytes", lambda: 1000)
    monkeypatch.setattr(machine_speed, "_MEASURING_SECONDS", 0.1)
    target = build_folder / "refused"
    # What has been done before is not refused, so this is another calibration, or other pictures.
    what = ["unet_int8", "--set", "calibrate.seed=99"]
    if command == "evaluate":
        what = [str(bundle), "--set", "evaluate.seed=99"]
    result = CliRunner().invoke(main, [command, *what, "--output", str(target)])
    assert result.exit_code == 2
    assert "--ignore-preflight" in result.output
    assert "peak memory" in result.output
    assert ("compress" in result.output) == (command == "quantize")
    assert not target.exists()


def test_a_refused_run_can_be_started_all_the_same(
    build_folder: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del bundle  # its converted model is reused
    monkeypatch.setattr(opening, "SMALL_MODEL_BYTES", 0)
    monkeypatch.setattr(preflight, "available_memory_bytes", lambda: 1000)
    monkeypatch.setattr(machine_speed, "_MEASURING_SECONDS", 0.1)
    command = ["calibrate", "unet_int8", "--output", str(build_folder / "ignored")]
    for setting in (*QUICK, "calibrate.samples=2", "calibrate.prompts=1", "calibrate.seed=98"):
        command += ["--set", setting]
    assert CliRunner().invoke(main, command).exit_code == 2
    result = CliRunner().invoke(main, [*command, "--ignore-preflight"])
    assert result.exit_code == 0, result.output
    assert "peak memory" in result.output
    assert (Path(result.stdout.splitlines()[-1]) / "recorded").is_dir()
