"""Evaluation on its own: other prompts, other baselines, sequential looks; nothing drawn twice."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from click.testing import CliRunner
from conftest import quick_recipe

from sdcompress.assessment import evaluate
from sdcompress.cli import main
from sdcompress.demo import CLIP_DIR, MODEL_DIR
from sdcompress.errors import (
    BundleError,
    CalibrationError,
    EvaluationError,
    InputError,
    QualityUndecided,
)
from sdcompress.processor import executes_bf16
from sdcompress.progress import Advance, SilentProgress
from sdcompress.quiet import quiet_libraries
from sdcompress.report.document import SCHEMA_FILE
from sdcompress.runtime import NotFiniteError
from sdcompress.workflow import quantize

pytestmark = pytest.mark.filterwarnings("ignore")  # raised inside the libraries
ABSENT = {} if executes_bf16() else {"bf16": "Yardstick of BF16 execution"}  # on this processor
FEW = ("evaluate.prompts=4", "evaluate.sqnr_prompts=1", "evaluate.yardstick_prompts=2")


class Drawn(SilentProgress):
    """Remembers which sets of pictures were drawn, and how many were there before."""

    def __init__(self) -> None:
        self.kept: dict[str, int] = {}

    @contextmanager
    def stage(self, name: str, detail: str) -> Iterator[Advance]:
        told: list[int] = []
        yield lambda done, total: told.append(done)
        if name == "draw":
            self.kept[detail] = told[0] if told[0] > 1 else 0


def require_valid(report: dict) -> None:
    jsonschema.validate(report, json.loads(SCHEMA_FILE.read_text(encoding="utf-8")))


def report_of(folder: Path) -> dict:
    return json.loads((folder / "report/report.json").read_text(encoding="utf-8"))


def test_a_second_candidate_does_not_draw_the_baseline_again(
    build_folder: Path, bundle: Path
) -> None:
    first = report_of(bundle)
    progress = Drawn()
    run = quantize(quick_recipe("weights_int8"), build_folder / "other", progress=progress)
    assert list(progress.kept) == ["compressed, 8 pictures"]  # neither baseline nor yardsticks
    mine = report_of(run.output)
    assert [s["scores"]["clip_score"]["baseline"] for s in mine["samples"]] == [
        s["scores"]["clip_score"]["baseline"] for s in first["samples"]
    ]


def test_every_figure_has_its_yardsticks(bundle: Path) -> None:
    quality = report_of(bundle)["quality"]
    assert set(quality["yardsticks"]) == {"steps", "seed"} | ({"bf16"} - ABSENT.keys())
    for metric in quality["metrics"]:
        if metric["kind"] == "set":
            # Two pictures are not all eight, and distances of sets depend on how many there are.
            assert metric["yardsticks"] == {}
        elif metric["samples"] == 8:  # every prompt states it
            assert set(metric["yardsticks"]) == set(quality["yardsticks"]), metric["name"]
    by_name = {metric["name"]: metric for metric in quality["metrics"]}
    ssim = by_name["ssim"]
    # Another seed draws another picture.
    assert ssim["yardsticks"]["seed"]["value"] < ssim["value"]
    assert {"checker", "checker_colour", "checker_shape"} <= set(by_name)
    assert by_name["checker_relation"]["samples"] < by_name["checker"]["samples"]
    assert {one["name"] for one in quality["skipped"]} == {"FID", "LPIPS", *ABSENT.values()}


def test_more_prompts_draw_only_what_is_new(build_folder: Path, bundle: Path) -> None:
    output, progress = build_folder / "grown", Drawn()
    evaluate(bundle, output, overrides=("evaluate.prompts=10",), progress=progress)
    assert progress.kept == {"baseline, 10 pictures": 8, "compressed, 10 pictures": 8}
    few, more = (report_of(folder)["samples"] for folder in (bundle, output))
    assert [s["prompt"] for s in more[:8]] == [s["prompt"] for s in few]
    assert [s["likeness"] for s in more[:8]] == [s["likeness"] for s in few]


def test_any_folder_is_judged_against_any_other(
    build_folder: Path, bundle: Path, baseline: Path, tmp_path: Path
) -> None:
    """Without manifests, as optimum-cli leaves them; what is known of the same files is kept."""
    folders = []
    for name, source in (("exported", baseline), ("quantized", bundle)):
        folders.append(tmp_path / name)
        shutil.copytree(
            source, folders[-1], ignore=shutil.ignore_patterns("manifest.json", "report")
        )
    with pytest.raises(BundleError, match="--against FOLDER"):
        evaluate(folders[1])
    command = ["evaluate", str(folders[1]), "--against", str(folders[0]), "--recipe", "unet_int8"]
    output, store = build_folder / "any", build_folder / ".sdcompress"
    command += ["--prompts", "demo_evaluation", "--samples", "4", "--output", str(output)]
    drawn = set(store.glob("pictures-*/*.png"))
    for one in (*FEW[1:], "sampling.steps=8", "evaluate.timed_images=1", "budgets={ssim_min: 0.5}"):
        command += ["--set", one]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert set(store.glob("pictures-*/*.png")) == drawn
    report = report_of(output)
    require_valid(report)
    assert report["model"]["id"] == "exported"
    assert report["components"]["unet"]["method"] == "as found"
    by_prompt = {(s["prompt"], s["seed"]): s for s in report_of(bundle)["samples"]}
    for sample in report["samples"]:
        if (sample["prompt"], sample["seed"]) in by_prompt:
            expected = by_prompt[sample["prompt"], sample["seed"]]["likeness"]["ssim"]
            assert sample["likeness"]["ssim"] == pytest.approx(expected, abs=1e-6)


def test_a_peers_export_is_judged_by_the_same_yardstick(
    build_folder: Path, baseline: Path, tmp_path: Path
) -> None:
    exporters = pytest.importorskip("optimum.exporters.openvino")
    intel = pytest.importorskip("optimum.intel")
    peer = tmp_path / "a peer's (16 bits)"  # no name that a recipe could have
    with quiet_libraries():
        exporters.main_export(
            str(MODEL_DIR),
            str(peer),
            task="text-to-image",
            library_name="diffusers",
            ov_config=intel.OVConfig(dtype="fp16"),
        )
    overrides = (
        "evaluate.prompt_set=demo_evaluation", "evaluate.prompts=2", "evaluate.sqnr_prompts=1",
        "evaluate.yardstick_prompts=0", "evaluate.timed_images=1", "budgets={disk_ratio: 1.1}",
        "sampling={scheduler: ddim, steps: 8, guidance_scale: 5.0}", f"evaluate.scorer={CLIP_DIR}",
    )  # fmt: skip
    run = evaluate(peer, build_folder / "peer", against=baseline, overrides=overrides)
    report = report_of(run.output)
    require_valid(report)
    # The same weights, executed in the device's own precision.
    assert report["quality"]["ssim"]["mean"] > 0.95
    assert set(report["components"]["unet"]["layers_by_precision"]) == {"fp16"}


def test_prompts_it_was_calibrated_on_are_refused(bundle: Path, tmp_path: Path) -> None:
    overrides = ("evaluate.prompt_set=demo", "evaluate.prompts=256", "evaluate.seed=0")
    with pytest.raises(Exception, match="calibrat"):
        evaluate(bundle, tmp_path / "x", overrides=overrides)
    from sdcompress.prompts import prompt_file

    copy = tmp_path / "copy.jsonl"
    shutil.copyfile(prompt_file("demo"), copy)
    overrides = (f"evaluate.prompt_set={copy}", "evaluate.prompts=256")
    with pytest.raises(CalibrationError, match=r"evaluate\.allow_overlap=true"):
        evaluate(bundle, tmp_path / "x", overrides=overrides)


def test_too_few_pictures_leave_it_undecided(build_folder: Path, bundle: Path) -> None:
    output = build_folder / "open"
    overrides = (*FEW, "budgets={clip_score_drop: 0.5}")
    with pytest.raises(QualityUndecided, match=r"(?s)about \d+ more pictures .* evaluate\.prompt"):
        evaluate(bundle, output, overrides=overrides)
    report = report_of(output)
    assert report["status"] == "undecided"
    assert (output / "report/report.html").exists()
    require_valid(report)


@pytest.mark.parametrize(("budget", "code"), [("clip_score_drop: 0.5", 4), ("ssim_min: 1.0", 3)])
def test_a_verdict_is_an_exit_code(
    build_folder: Path, bundle: Path, budget: str, code: int
) -> None:
    command = ["evaluate", str(bundle), "--output", str(build_folder / "coded")]
    for one in (*FEW, f"budgets={{{budget}}}"):
        command += ["--set", one]
    assert CliRunner().invoke(main, command).exit_code == code


def test_what_is_judged_is_not_written_over(bundle: Path) -> None:
    with pytest.raises(InputError, match="is what is judged"):
        evaluate(bundle, bundle)
    with pytest.raises(InputError, match="is what is judged"):
        evaluate(bundle, bundle / "evaluation")
    assert (bundle / "manifest.json").exists()


def test_what_cannot_draw_is_refused_at_once(
    build_folder: Path, bundle: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "no decoder"
    shutil.copytree(
        bundle, broken, ignore=shutil.ignore_patterns("manifest.json", "report", "vae_decoder")
    )
    progress = Drawn()
    with pytest.raises(BundleError, match="incomplete, missing: vae_decoder"):
        evaluate(broken, build_folder / "x", against=bundle, progress=progress)
    assert progress.kept == {}


def test_features_that_a_user_brings_along_give_fid_with_its_yardsticks(
    build_folder: Path, bundle: Path, tmp_path: Path
) -> None:
    import openvino as ov
    from openvino import opset13 as opset

    picture = opset.parameter([1, 3, -1, -1], np.float32)
    means = opset.reduce_mean(picture, np.array([2, 3]), keep_dims=False)
    network = tmp_path / "features.xml"
    ov.save_model(ov.Model([means], [picture]), network)
    sizes = "budgets={unet_bytes_ratio: 0.5}"
    overrides = ("evaluate.prompts=2", f"evaluate.fid_features={network}", sizes)
    run = evaluate(bundle, build_folder / "featured", overrides=overrides)
    quality = report_of(run.output)["quality"]
    (fid,) = [one for one in quality["metrics"] if one["name"] == "fid"]
    assert set(fid["yardsticks"]) == set(quality["yardsticks"])  # of as many pictures
    assert "features.xml" in fid["made_by"]
    assert [one["name"] for one in quality["skipped"]] == ["LPIPS", *ABSENT.values()]
    # The same file in another role is something else.
    with pytest.raises(EvaluationError, match="has 1 inputs instead of 2"):
        overrides = ("evaluate.prompts=2", f"evaluate.lpips={network}")
        evaluate(bundle, build_folder / "featured", overrides=overrides)


def test_a_baseline_that_overflows_is_told_as_such(
    build_folder: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflow(*_: object, **__: object) -> None:
        raise NotFiniteError("the latents are not finite")

    monkeypatch.setattr("sdcompress.trial.draw_pictures", overflow)
    with pytest.raises(EvaluationError, match="baseline: the model itself, before any compression"):
        evaluate(bundle, build_folder / "broken", overrides=("evaluate.seed=77",))


def test_a_sequential_evaluation_ends_when_it_is_decided(build_folder: Path, bundle: Path) -> None:
    overrides = (
        "evaluate.prompts=40", "evaluate.sequential=true", "evaluate.yardstick_prompts=0",
        "evaluate.sqnr_prompts=1", "budgets={clip_score_drop: 30, ssim_min: 0.3}",
        "execution_precision=f32",  # as a device without BF16 draws
    )  # fmt: skip
    run = evaluate(bundle, build_folder / "sequential", overrides=overrides)
    looks = run.evaluation.quality.looks
    by_budget = {
        budget: [one for one in looks if one.budget == budget]
        for budget in ("clip_score_drop", "ssim_min")
    }
    for found in by_budget.values():
        assert [one.outcome for one in found][-1] == "passed"
        assert len(run.evaluation.samples) == found[-1].samples < 40
    report = report_of(run.output)
    require_valid(report)
    executed = report["environment"]["execution_precisions"]
    assert {kind for parts in executed.values() for kind in parts.values()} == {"f32"}
    assert report["quality"]["unet_sqnr_floor_db"] == {}
