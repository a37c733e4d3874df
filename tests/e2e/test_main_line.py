"""The whole line on the demo: builds, draws what was asked, refuses damage, reuses, resumes."""

import json
import shutil
import time
from pathlib import Path

import pytest
from conftest import quick_recipe

from sdcompress import opening, outlook, speed
from sdcompress.assessment import evaluate
from sdcompress.errors import OutputBusyError, PreflightError, QualityGateFailed
from sdcompress.line import find_material
from sdcompress.opening import production_line
from sdcompress.progress import SilentProgress
from sdcompress.recipe import load_recipe
from sdcompress.runtime import verify
from sdcompress.shipped import shipped_folder
from sdcompress.workflow import quantize

pytestmark = pytest.mark.filterwarnings("ignore")  # raised inside the libraries

FEW = ("evaluate.prompts=3", "evaluate.yardstick_prompts=0")
ON_THE_DEMO = sorted(
    file.stem
    for file in shipped_folder("recipes").rglob("*.yaml")
    if load_recipe(file).model == "demo"
)


class Listener(SilentProgress):
    """Remembers which stages were reused."""

    def __init__(self) -> None:
        self.reuses: list[str] = []

    def reused(self, name: str, detail: str) -> None:
        self.reuses.append(name)


def test_there_are_recipes_for_the_demo() -> None:
    assert len(ON_THE_DEMO) >= 3


@pytest.mark.parametrize("name", ON_THE_DEMO)
def test_every_recipe_for_the_demo_runs(name: str, build_folder: Path, bundle: Path) -> None:
    del bundle  # it converted the model already
    run = quantize(quick_recipe(name, *FEW), build_folder / f"{name}_quick")
    assert run.bundle is not None
    assert verify(run.bundle) == []


def test_a_large_model_is_worked_on_in_processes_of_their_own(
    build_folder: Path, bundle: Path, isolated: list[str]
) -> None:
    del bundle
    fewer = ("sampling.steps=2", "calibrate.prompts=1", "calibrate.samples=2")
    recipe = quick_recipe("unet_int8", *FEW, *fewer, "compress={text_encoder: {method: int8}}",
                          "budgets={disk_ratio: 0.9}")  # fmt: skip
    assert quantize(recipe, build_folder / "isolated").bundle is not None
    assert isolated == [
        "_record", "collect", "compress", "compress",  # the VAE's parts are those of the bundle
        "draw_pictures", "draw_pictures", "score_pictures", "measure_sqnr", "measure_layers",
    ]  # fmt: skip


def test_a_second_run_reuses_every_stage(build_folder: Path, bundle: Path) -> None:
    listener = Listener()
    second = quantize(quick_recipe("unet_int8"), build_folder / "second", progress=listener)
    assert set(listener.reuses) == {
        "convert", "calibrate", "ranges", "compress", "tiny",
        "draw", "score", "sqnr", "layers", "measure",
    }  # fmt: skip
    mine, other = (
        json.loads((one / "manifest.json").read_text())["files"] for one in (second.output, bundle)
    )
    assert mine == other


def test_a_damaging_recipe_is_stopped_by_the_gate(build_folder: Path, bundle: Path) -> None:
    del bundle
    gate = "budgets={unet_sqnr_min_db: 30}"
    careful = quick_recipe("weights_int8", *FEW, gate)
    assert quantize(careful, build_folder / "careful").bundle is not None
    damaging = quick_recipe(
        "weights_int8",
        *FEW,
        "compress.unet={method: int4_weights, all_layers: true, convolutions: true, "
        "group_size: -1}",
        gate,
    )
    output = build_folder / "damaged"
    with pytest.raises(QualityGateFailed, match=r"unet_sqnr_min_db .* at least 30"):
        quantize(damaging, output)
    assert [path.name for path in output.iterdir()] == ["report"]
    report = json.loads((output / "report/report.json").read_text())
    assert report["status"] == "failed"


def test_a_failed_run_replaces_an_earlier_bundle(
    build_folder: Path, bundle: Path, tmp_path: Path
) -> None:
    output = build_folder / "replaced"
    shutil.copytree(bundle, output)
    recipe = quick_recipe("unet_int8", "budgets={ssim_min: 1.0}")
    with pytest.raises(QualityGateFailed):
        quantize(recipe, output)
    assert not (output / "manifest.json").exists()
    assert not (output / "unet").exists()


def test_evaluating_a_bundle_gives_its_own_figures_again(
    build_folder: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides, listener = ("evaluate.prompts=4",), Listener()
    run = evaluate(bundle, build_folder / "again", overrides=overrides, progress=listener)
    # The bundle's files are those that were evaluated when it was made.
    assert {"convert", "draw", "sqnr", "layers", "measure"} <= set(listener.reuses)
    first = json.loads((bundle / "report/report.json").read_text())
    again = json.loads((run.report / "report.json").read_text())
    assert len(again["samples"]) == 4
    by_prompt = {(s["prompt"], s["seed"]): s for s in first["samples"]}
    shared = [s for s in again["samples"] if (s["prompt"], s["seed"]) in by_prompt]
    assert shared
    for sample in shared:
        expected = by_prompt[sample["prompt"], sample["seed"]]
        assert sample["likeness"]["ssim"] == pytest.approx(expected["likeness"]["ssim"], abs=1e-6)
    assert again["components"] == first["components"]
    # What is finished needs no room; what is not, does.
    monkeypatch.setattr(opening, "SMALL_MODEL_BYTES", 0)
    monkeypatch.setattr(outlook, "available_memory_bytes", lambda: 1000)
    monkeypatch.setattr(speed, "_MEASURING_SECONDS", 0.1)
    repeated = evaluate(bundle, build_folder / "again", overrides=overrides)
    assert repeated.evaluation.quality == run.evaluation.quality
    with pytest.raises(PreflightError, match="--ignore-preflight"):
        evaluate(bundle, build_folder / "again", overrides=(*overrides, "evaluate.seed=7"))


def test_a_second_run_in_the_same_folder_is_refused(build_folder: Path, bundle: Path) -> None:
    recipe = quick_recipe("unet_int8")
    material = find_material(recipe, SilentProgress())
    with production_line(recipe, bundle, material, SilentProgress()):
        started = time.monotonic()
        with pytest.raises(OutputBusyError, match="another run is writing"):
            quantize(recipe, build_folder / "unet_int8")
        assert time.monotonic() - started < 20
