"""Shortcuts in drawing: swept over, measured with, carried by the bundle, used by default."""

import json
import os
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from conftest import quick_recipe
from PIL import Image

from sdcompress import assessment
from sdcompress.assessment import evaluate, sweep
from sdcompress.cli import main
from sdcompress.errors import InputError, QualityGateFailed, QualityUndecided
from sdcompress.evaluate.records import Estimate
from sdcompress.recipe import Runtime
from sdcompress.sweep import Grid, TradeOff, allowed, describe, recommend, table

pytestmark = pytest.mark.filterwarnings("ignore")  # raised inside the libraries
FEW = ("evaluate.prompts=4", "evaluate.sqnr_prompts=1", "evaluate.yardstick_prompts=0",
       "evaluate.timed_images=1")  # fmt: skip


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(one) for one in arguments])


def report_of(folder: Path) -> dict:
    return json.loads((folder / "report/report.json").read_text(encoding="utf-8"))


def test_the_quality_is_that_of_pictures_drawn_with_them(bundle: Path, tmp_path: Path) -> None:
    reports: list[dict] = []
    shortcuts = "runtime={cache_interval: 4, steps: 5, decoder: tiny}"
    for name, further in (("plain", ()), ("fast", (shortcuts,))):
        output = bundle.parent / f"{tmp_path.name}-{name}"  # shares the store
        with suppress(QualityUndecided):  # four pictures need not suffice
            evaluate(bundle, output, overrides=(*FEW, *further))
        reports.append(report_of(output))
    plain, fast = reports
    assert fast["recipe"]["runtime"]["cache_interval"] == 4
    likeness = [{one["name"]: one["value"] for one in report["quality"]["metrics"]}["ssim"]
                for report in reports]  # fmt: skip
    assert likeness[1] != likeness[0]
    for before, after in zip(plain["samples"], fast["samples"], strict=True):
        scores = [one["scores"]["clip_score"] for one in (before, after)]
        assert scores[0]["baseline"] == scores[1]["baseline"]
        assert scores[0]["compressed"] != scores[1]["compressed"]
    # The networks are compared call by call, which shortcuts do not change.
    for name in ("unet_sqnr_db", "latents_sqnr_db"):
        assert fast["quality"][name] == plain["quality"][name]
    page = (output / "report/report.html").read_text(encoding="utf-8")
    assert "drawn with shortcuts: steps 5, cache_interval 4, decoder tiny" in page
    assert "drawn with shortcuts" in (output / "report/report.md").read_text(encoding="utf-8")


def test_combinations_are_swept_and_nothing_is_measured_twice(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted: list[set[str]] = []
    monkeypatch.setattr(
        assessment, "look_ahead", lambda _, __, stages, **___: wanted.append(set(stages))
    )
    grid = Grid(cache_intervals=(1, 3), attention_strides=(1,), guidance_ends=(1.0, 0.5))
    found, drop = sweep(bundle, grid, overrides=FEW)
    assert [one.shortcuts for one in found] == [
        {},
        {"guidance_end": 0.5},
        {"cache_interval": 3},
        {"cache_interval": 3, "guidance_end": 0.5},
    ]
    assert drop is None  # the shortened recipe has no such budget
    assert all(one.samples == 4 and one.image_seconds > 0 for one in found)
    assert len({one.ssim for one in found}) == 4
    best = float("-inf")  # on the front is what is better than all that is quicker
    for one in sorted(found, key=lambda one: one.image_seconds):
        assert one.on_front == (one.clip_score.value > best)
        best = max(best, one.clip_score.value)
    again, _ = sweep(bundle, grid, overrides=FEW)
    assert again == found  # times as well: they were kept
    assert [one & {"draw", "measure"} for one in wanted] == [{"draw", "measure"}, set()]

    arguments = ("--cache-interval", 1, "--cache-interval", 3, "--attention-stride", 1,
                 "--guidance-end", 1, "--samples", 4)  # fmt: skip
    done = run("sweep", bundle, *arguments, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert [one["shortcuts"] for one in told["combinations"]] == [{}, {"cache_interval": 3}]
    assert told["combinations"][1]["ssim"] == found[2].ssim
    assert told["recommended"] is None
    lines = run("sweep", bundle, *arguments).stdout.splitlines()
    assert [line.split("  ")[0] for line in lines[1:3]] == ["no shortcuts", "cache_interval 3"]


def test_a_sweep_needs_a_bundle(tmp_path: Path, baseline: Path) -> None:
    copy = shutil.copytree(baseline, tmp_path / "copy")
    done = run("sweep", copy)
    assert done.exit_code == 2
    assert "has no manifest" in done.stderr


def test_a_decoder_that_is_not_there_is_not_swept_over(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    shutil.rmtree(copy / "tiny_decoder")
    manifest = json.loads((copy / "manifest.json").read_text())
    for name in [one for one in manifest["files"] if one.startswith("tiny_decoder/")]:
        del manifest["files"][name]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    for arguments in (("sweep", copy, "--decoder", "tiny"),
                      ("evaluate", copy, "--set", "runtime.decoder=tiny"),
                      ("generate", copy, "a red ring", "--decoder", "tiny")):  # fmt: skip
        done = run(*arguments)
        assert done.exit_code == 2
        assert "has no tiny_decoder" in done.stderr


def trade_off(seconds: float, score: float, low: float, **shortcuts: float) -> TradeOff:
    return TradeOff(shortcuts, seconds, Estimate(score, low, 0.5), 0.9, 64)


def test_the_quickest_within_the_budget_is_recommended() -> None:
    found = [
        trade_off(10.0, 0.0, -0.1),
        trade_off(6.0, -0.2, -0.5, cache_interval=2),
        trade_off(4.0, -0.6, -1.2, cache_interval=3),
    ]
    assert recommend(found, 1.0) is found[1]
    assert recommend(found, 2.0) is found[2]
    assert recommend(found, 0.2) is None  # without shortcuts there is nothing to recommend
    assert recommend(found, None) is None
    assert list(table(found, 1.0))[-1].endswith("runtime: {cache_interval: 2}")
    assert "none keeps the CLIP score within 0.2" in list(table(found, 0.2))[-1]
    assert describe({}) == "no shortcuts"
    slow = [*found[:1], trade_off(11.0, 0.1, 0.0, guidance_end=0.5)]
    assert recommend(slow, 1.0) is None  # quicker than without shortcuts it has to be


def test_no_combination_is_measured_twice() -> None:
    grid = Grid(cache_intervals=(1, 2, 2), attention_strides=(1,), guidance_ends=(1.0,))
    assert grid.shortcuts() == [{}, {"cache_interval": 2}]
    deep = replace(grid, cache_intervals=(1, 2), cache_depths=(1, 3))  # of nothing, without a cache
    assert deep.shortcuts() == [{}, {"cache_interval": 2}, {"cache_interval": 2, "cache_depth": 3}]


def test_every_shortcut_can_be_swept_over(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Grid] = []
    monkeypatch.setattr(assessment, "sweep", lambda _, grid, **__: asked.append(grid))
    usual = Runtime().model_dump()
    options = {"cache_interval": 4, "cache_depth": 2, "attention_stride": 2, "steps": 6,
               "guidance_begin": 0.25, "guidance_end": 0.75, "scheduler": "euler",
               "decoder": "tiny"}  # fmt: skip
    assert options.keys() == usual.keys()
    named = [one for key, value in options.items() for one in ("--" + key.replace("_", "-"), value)]
    run("sweep", bundle, *named)
    run("sweep", bundle)
    assert asked == [asked[0], Grid()]
    assert asked[0].shortcuts() == [{}, options]


def test_what_the_recipe_rules_out_is_told_before_any_work(bundle: Path, tmp_path: Path) -> None:
    recipe = quick_recipe("unet_int8", "convert.batch=2")
    found, left_out = allowed(Grid(), recipe)
    assert found == Grid(guidance_ends=(1.0,)).shortcuts()
    assert len(found) + len(left_out) == len(Grid().shortcuts())
    words = "cannot draw with guidance_end 0.5: convert.batch: with guidance in an interval"
    with pytest.raises(InputError, match=words):
        allowed(Grid(guidance_ends=(1.0, 0.5)), recipe)
    plain = quick_recipe("unet_int8", "sampling.guidance_scale=1")
    assert allowed(Grid(), plain)[0] == Grid(guidance_ends=(1.0,)).shortcuts()
    with pytest.raises(InputError, match=r"guidance_end 0\.5: sampling\.guidance_scale is 1"):
        allowed(Grid(guidance_ends=(1.0, 0.5)), plain)
    # What is usual does not stand in the way of what was asked for.
    later = Grid(cache_intervals=(1,), attention_strides=(1,), guidance_begins=(0.7,))
    assert allowed(later, quick_recipe("unet_int8"))[0] == [{}, {"guidance_begin": 0.7}]

    deep = ("--cache-interval", 2, "--cache-depth", 1, "--cache-depth", 99)
    assert "cache_depth is 99; this UNet has" in run("sweep", bundle, *deep).stderr

    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["recipe"]["convert"]["batch"] = 2
    (copy / "manifest.json").write_text(json.dumps(manifest))
    done = run("sweep", copy, "--guidance-end", 0.5)
    assert done.exit_code == 2
    assert words in done.stderr


@pytest.fixture(scope="module")
def quick_bundle(bundle: Path) -> Path:
    """The bundle, as if it had been evaluated with shortcuts."""
    # Beside the bundle, for the sake of its store, where another test process may have a copy, too.
    copy = bundle.parent / f"quick-{os.getpid()}"
    shutil.copytree(bundle, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["recipe"]["runtime"] |= {"cache_interval": 3, "guidance_end": 0.5, "steps": 4}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), ("4", "3", "0.5")),
        (("--fast",), ("4", "3", "0.5")),
        (("--no-fast",), ("8", "1", "1.0")),
        (("--cache-interval", 2), ("4", "2", "0.5")),
        (("--no-fast", "--guidance-end", 0.75), ("8", "1", "0.75")),
    ],
)
def test_a_bundle_draws_as_it_was_evaluated(
    quick_bundle: Path, tmp_path: Path, options: tuple[object, ...], expected: tuple[str, ...]
) -> None:
    file = tmp_path / "x.png"
    done = run("generate", quick_bundle, "a red ring", "-o", file, *options)
    assert done.exit_code == 0, done.output
    with Image.open(file) as picture:
        told = picture.text
    assert (told["steps"], told["cache_interval"], told["guidance_end"]) == expected


def test_what_was_not_evaluated_is_not_offered_as_fast(bundle: Path, tmp_path: Path) -> None:
    done = run("generate", bundle, "a red ring", "--fast", "-o", tmp_path / "x.png")
    assert done.exit_code == 2
    assert "evaluated without shortcuts" in done.stderr
    assert "--cache-interval" in done.stderr


def test_a_bundle_is_judged_as_it_draws_whoever_says_how(quick_bundle: Path) -> None:
    """Another recipe says what is drawn and measured, not with which shortcuts."""
    output = quick_bundle.with_name(f"{quick_bundle.name}-judged")
    with suppress(QualityUndecided, QualityGateFailed):
        evaluate(quick_bundle, output, recipe=quick_recipe("unet_int8", *FEW))
    assert report_of(output)["recipe"]["runtime"]["cache_interval"] == 3
