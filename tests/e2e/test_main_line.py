"""The whole line on the demo: builds, draws what was asked, refuses damage, reuses, resumes."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import QUICK, quick_recipe

from sdcompress import preflight, workflow
from sdcompress.bundle import assemble
from sdcompress.demo import CLIP_DIR
from sdcompress.demo.checker import check
from sdcompress.errors import OutputBusyError, PreflightError, QualityGateFailed
from sdcompress.line import find_material
from sdcompress.progress import SilentProgress
from sdcompress.recipe import load_recipe
from sdcompress.runtime import Job, Pipeline, Settings, stream, verify
from sdcompress.shipped import shipped_folder
from sdcompress.workflow import evaluate, production_line, quantize

pytestmark = pytest.mark.filterwarnings("ignore")  # raised inside the libraries

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
    run = quantize(quick_recipe(name), build_folder / f"{name}_quick")
    assert run.bundle is not None
    assert verify(run.bundle) == []


def test_the_shipped_recipe_draws_what_was_asked_about_as_often_as_the_baseline(
    baseline: Path, build_folder: Path, tmp_path: Path
) -> None:
    # Calibrated all along the trajectory; the quick recipes' 8 steps are too few for the last ones.
    fewer = ("calibrate.prompts=8", "calibrate.samples=64")
    recipe = load_recipe(shipped_folder("recipes") / "unet_int8.yaml", fewer)
    material = find_material(recipe, SilentProgress())
    bundle = tmp_path / "bundle"
    with production_line(recipe, build_folder / "drawing", material, SilentProgress()) as line:
        compressed = line.compressed()
        assemble(line.converted, {part: ir.folder for part, ir in compressed.items()}, bundle)
    lines = (shipped_folder("calibration") / "demo_evaluation.jsonl").read_text().splitlines()
    prompts = [json.loads(line) for line in lines]
    single = [row["prompt"] for row in prompts if row["category"] == "one object"][:20]
    before = _right(Pipeline.load(baseline, execution_precision="f32"), single)
    after = _right(Pipeline.load(bundle, verify="never"), single)
    assert before >= 18
    assert after >= before - 3


def _right(pipeline: Pipeline, prompts: list[str]) -> int:
    """Counts the pictures that the checker accepts."""
    settings = Settings(steps=25, guidance_scale=5.0, scheduler="dpmsolver++")
    jobs = [Job(prompt, seed=seed) for seed, prompt in enumerate(prompts)]
    return sum(
        check(image, job.prompt).ok for job, image in stream(pipeline, jobs, settings, batch=10)
    )


def test_a_second_run_reuses_every_stage(build_folder: Path, bundle: Path) -> None:
    listener = Listener()
    second = quantize(quick_recipe("unet_int8"), build_folder / "second", progress=listener)
    assert set(listener.reuses) == {
        "convert", "calibrate", "ranges", "compress", "draw", "score", "sqnr", "measure",
    }  # fmt: skip
    mine, other = (
        json.loads((one / "manifest.json").read_text())["files"] for one in (second.output, bundle)
    )
    assert mine == other


def test_a_damaging_recipe_is_stopped_by_the_gate(build_folder: Path, bundle: Path) -> None:
    del bundle
    gate = "budgets={unet_sqnr_min_db: 30}"
    careful = quick_recipe("weights_int8", gate)
    assert quantize(careful, build_folder / "careful").bundle is not None
    damaging = quick_recipe(
        "weights_int8",
        "compress.unet={method: int4_weights, all_layers: true, convolutions: true, "
        "group_size: -1}",
        gate,
    )
    output = build_folder / "damaged"
    with pytest.raises(QualityGateFailed, match=r"unet_sqnr_min_db .* at least 30"):
        quantize(damaging, output)
    assert QualityGateFailed.exit_code == 3
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
    overrides = ("evaluate.prompts=4", "evaluate.sqnr_prompts=1")
    run = evaluate(bundle, build_folder / "again", overrides=overrides)
    first = json.loads((bundle / "report/report.json").read_text())
    again = json.loads((run.report / "report.json").read_text())
    assert len(again["samples"]) == 4
    by_prompt = {(s["prompt"], s["seed"]): s for s in first["samples"]}
    shared = [s for s in again["samples"] if (s["prompt"], s["seed"]) in by_prompt]
    assert shared
    for sample in shared:
        expected = by_prompt[sample["prompt"], sample["seed"]]
        assert sample["ssim"] == pytest.approx(expected["ssim"], abs=1e-6)
    assert again["components"] == first["components"]
    # What is finished needs no room; what is not, does.
    monkeypatch.setattr(workflow, "SMALL_MODEL_BYTES", 0)
    monkeypatch.setattr(preflight, "available_memory_bytes", lambda: 1000)
    monkeypatch.setattr(preflight, "_MEASURING_SECONDS", 0.1)
    repeated = evaluate(bundle, build_folder / "again", overrides=overrides)
    assert repeated.evaluation.quality == run.evaluation.quality
    with pytest.raises(PreflightError, match="--ignore-preflight"):
        evaluate(bundle, build_folder / "again", overrides=("evaluate.prompts=3",))


def test_a_second_run_in_the_same_folder_is_refused(build_folder: Path, bundle: Path) -> None:
    recipe = quick_recipe("unet_int8")
    material = find_material(recipe, SilentProgress())
    with production_line(recipe, bundle, material, SilentProgress()):
        started = time.monotonic()
        with pytest.raises(OutputBusyError, match="another run is writing"):
            quantize(recipe, build_folder / "unet_int8")
        assert time.monotonic() - started < 20


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_run_killed_in_every_stage_ends_with_the_same_result(
    baseline: Path, bundle: Path, tmp_path: Path
) -> None:
    output = tmp_path / "unet_int8"
    store = output.parent / ".sdcompress"
    command = [sys.executable, "-m", "sdcompress", "quantize", "unet_int8"]
    command += [word for setting in QUICK for word in ("--set", setting)]
    command += ["--output", str(output)]
    kept = {}
    for stage in ("convert", "calibrate", "ranges", "compress", "draw", "sqnr", "measure"):
        _kill_in(stage, command, store)
        assert not output.exists()
        assert not list(store.glob(f"{stage}-*")) or stage in ("compress", "draw")
        for file in store.glob(f"unfinished/{stage}-*/{_KEPT.get(stage, 'nothing')}"):
            kept[file.relative_to(store / "unfinished")] = file.stat().st_mtime_ns
        if stage == "convert":  # begins anew whenever it is killed: once is enough
            shutil.copytree(baseline, store / baseline.name)
    subprocess.run(command, check=True, capture_output=True, env=os.environ)
    assert {file.parts[0].split("-")[0] for file in kept} == set(_KEPT)
    for file, written in kept.items():  # went on inside the stage: what was there is there still
        assert (store / file).stat().st_mtime_ns == written
    assert verify(output) == []
    for file in ("unet/openvino_model.bin", "text_encoder/openvino_model.bin"):
        assert (output / file).read_bytes() == (bundle / file).read_bytes()
    mine, other = (
        json.loads((folder / "report/report.json").read_text()) for folder in (output, bundle)
    )
    assert mine["quality"] == other["quality"]
    assert not any((store / "scratch").iterdir())


# How far a stage that resumes inside itself has to be to be worth a kill.
_BEGUN = {
    "calibrate": "unfinished/calibrate-*/recorded/00001.npz",
    "ranges": "unfinished/ranges-*/00002.npy",
    "draw": "unfinished/draw-*/00001.png",
    "sqnr": "unfinished/sqnr-*/candidate/00000.json",
    "measure": "unfinished/measure-*/baseline-0.json",
}
# What such a stage writes bit by bit.
_KEPT = {
    "calibrate": "recorded/*.npz",
    "ranges": "*.npy",
    "draw": "*.png",
    "sqnr": "*/*.json",
    "measure": "*.json",
}


def _kill_in(stage: str, command: list[str], store: Path) -> None:
    """Starts the run and kills it, without warning, as soon as it works on `stage`."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    try:
        while not list(store.glob(_BEGUN.get(stage, f"scratch/*/{stage}-*"))):
            assert process.poll() is None, f"the run ended before it reached {stage}"
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()


def test_a_model_that_overflows_is_a_clear_error(build_folder: Path, tmp_path: Path) -> None:
    import safetensors.numpy

    from sdcompress.demo import MODEL_DIR
    from sdcompress.errors import SdcompressError

    broken = Path(shutil.copytree(MODEL_DIR, tmp_path / "broken"))
    weights = broken / "unet/diffusion_pytorch_model.safetensors"
    tensors = safetensors.numpy.load_file(weights)
    tensors["conv_in.weight"][:] = float("inf")
    safetensors.numpy.save_file(tensors, weights, metadata={"format": "pt"})
    recipe = quick_recipe("unet_int8", f"model={broken}", f"evaluate.scorer={CLIP_DIR}")
    with pytest.raises(SdcompressError, match=r"NaN or infinite|not finite"):
        quantize(recipe, tmp_path / "out" / "x")
    assert not (tmp_path / "out" / "x").exists()


def small_disk(place: Path, megabytes: int, *command: str) -> subprocess.CompletedProcess[str]:
    """Runs a command while `place` is a disk of this size; lists what is left on it."""
    mount = f"mount -t tmpfs -o size={megabytes}m tmpfs {shlex.quote(str(place))}"
    script = f"{mount} || exit 77; {shlex.join(command)}; code=$?; find {place}; exit $code"
    return subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", script],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(not shutil.which("unshare"), reason="needs Linux' unshare")
def test_a_full_disk_is_a_clear_error(tmp_path: Path) -> None:
    if small_disk(tmp_path, 1, "true").returncode:
        pytest.skip("this user may not mount a small disk")
    console_script = str(Path(sys.executable).with_name("sdcompress"))
    result = small_disk(tmp_path, 20, console_script, "convert", "demo", str(tmp_path / "out"))
    assert result.returncode == 2, result.stderr
    assert "could not write the IR" in result.stderr
    assert "are free on that disk" in result.stderr
    assert "Traceback" not in result.stderr
    assert not [line for line in result.stdout.splitlines() if line.endswith((".xml", ".bin"))]
