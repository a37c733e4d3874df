"""The command line as users meet it: help, faults, exit codes."""

import json
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from conftest import quick_recipe
from PIL import Image
from toy_model import write_toy_model

from sdcompress.bundle import seal
from sdcompress.cli import main
from sdcompress.demo import CLIP_DIR
from sdcompress.demo.grammar import parse
from sdcompress.demo.render import render
from sdcompress.runtime import NotFiniteError, Pipeline, Settings
from sdcompress.tuning import Cell, Tuning, remember

PICTURE = Path(__file__).parents[1] / "docs/unet_int8.png"


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def fault(*arguments: str | Path) -> str:
    """Runs a command that must fail with exit code 2 and a message, not a traceback."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.output


@pytest.fixture(scope="module")
def toy_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that draws in no time, for what is not about its pictures. Nothing may change it."""
    folder = write_toy_model(tmp_path_factory.mktemp("toy") / "bundle")
    seal(folder, quick_recipe("unet_int8").as_dict(), {}, {})
    return folder


def test_help_names_every_command() -> None:
    text = run("--help").output
    verbs = [
        "quantize",
        "convert",
        "calibrate",
        "evaluate",
        "compare",
        "generate",
        "inspect",
        "verify",
        "recipes",
        "bench",
        "pack",
        "unpack",
        "sign",
        "sweep",
        "search",
    ]
    assert all(f"\n  {verb}" in text for verb in verbs)
    for verb in verbs:
        assert run(verb, "--help").exit_code == 0


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys, sdcompress.cli; sdcompress.cli.main(['--help'], standalone_mode=False); "
        "print(sorted({'torch','openvino','nncf','transformers','diffusers','pydantic','datasets'}"
        " & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")


def test_recipes_are_listed_and_explained() -> None:
    listed = run("recipes").output
    assert "unet_int8" in listed
    assert "sd21_int8" in listed
    explained = run("recipes", "unet_int8").output
    assert "Full 8-bit post-training quantization" in explained
    assert "clip_score_drop" in explained
    for command in ("recipes", "quantize"):
        assert "did you mean 'unet_int8'" in fault(command, "unet_int88")


def test_a_broken_recipe_writes_nothing(tmp_path: Path) -> None:
    output = tmp_path / "build" / "x"
    message = fault("quantize", "unet_int8", "--set", "evaluate.promts=3", "--output", output)
    assert "did you mean 'prompts'" in message
    assert not output.parent.exists()


def test_a_missing_recipe_and_a_missing_model(tmp_path: Path) -> None:
    assert "no such recipe" in fault("quantize", tmp_path / "nothing.yaml")
    output = tmp_path / "build" / "x"
    message = fault("quantize", "unet_int8", "--model", "no such", "--output", output)
    assert "neither 'demo', an existing folder or file, nor a hub id" in message
    assert not output.parent.exists()


def test_an_output_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    message = fault("quantize", "unet_int8", "--output", tmp_path)
    assert "did not write" in message
    assert (tmp_path / "precious.txt").read_text() == "mine"


@pytest.mark.parametrize("ours", [False, True], ids=["another manifest", "a file of the user"])
def test_nothing_is_deleted_that_a_run_did_not_write(
    bundle: Path, tmp_path: Path, *, ours: bool
) -> None:
    folder = tmp_path / "result"
    if ours:
        shutil.copytree(bundle, folder)
    else:
        folder.mkdir()
        (folder / "manifest.json").write_text('{"name": "my extension"}')
    (folder / "precious.txt").write_text("mine")
    assert "did not write" in fault("quantize", "unet_int8", "--output", folder)
    assert (folder / "precious.txt").read_text() == "mine"


def test_the_current_folder_is_no_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "current folder" in fault("quantize", "unet_int8", "--output", ".")
    assert not list(tmp_path.iterdir())


def test_a_model_is_taken_literally(tmp_path: Path) -> None:
    for name in ("2.1", "my #1 model", "null"):
        message = fault("quantize", "unet_int8", "--model", name, "--output", tmp_path / "x")
        assert f"model '{name}' is neither" in message


def test_calibrate_refuses_a_recipe_that_calibrates_nothing(tmp_path: Path) -> None:
    message = fault("calibrate", "weights_int8", "--output", tmp_path / "x")
    assert "none of its methods is calibrated" in message
    assert not list(tmp_path.iterdir())


def test_evaluate_cannot_change_how_a_bundle_was_made(bundle: Path, tmp_path: Path) -> None:
    message = fault(
        "evaluate", bundle, "--set", "compress.unet={method: fp16}", "--output", tmp_path / "x"
    )
    assert "the bundle is made" in message


def test_evaluate_refuses_the_baseline_of_another_model(
    bundle: Path, tmp_path: Path, model_folder: Path
) -> None:
    other = Path(shutil.copytree(model_folder, tmp_path / "other"))
    config = other / "unet/config.json"
    config.write_text(config.read_text() + "\n")
    message = fault(
        "evaluate", bundle, "--set", f"model={other}", "--output", tmp_path / "x",
        "--set", f"evaluate.scorer={CLIP_DIR}",
    )  # fmt: skip
    assert "a baseline of another model proves nothing" in message


def test_overlapping_prompt_sets_are_refused(tmp_path: Path) -> None:
    from sdcompress.prompts import prompt_file

    copy = tmp_path / "copy.jsonl"
    shutil.copyfile(prompt_file("demo_evaluation"), copy)
    message = fault(
        "quantize", "unet_int8", "--set", f"calibrate.prompt_set={copy}",
        "--set", "calibrate.prompts=256", "--output", tmp_path / "out",
    )  # fmt: skip
    assert "in the calibration and in the evaluation set" in message


def test_generate_writes_a_24_bit_picture_with_its_settings(bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "star.png"
    done = run("generate", bundle, "a photo of a green star", "--seed", 7, "--steps", 4, "-o", file)
    assert done.exit_code == 0, done.output
    with Image.open(file) as picture:
        assert (picture.mode, picture.size) == ("RGB", (128, 128))
        assert picture.text["prompt"] == "a photo of a green star"
        assert (picture.text["seed"], picture.text["steps"]) == ("7", "4")
        assert picture.text["guidance_scale"] == "5.0"  # the bundle's own


def test_generate_tells_what_it_does_to_save_memory(toy_bundle: Path, tmp_path: Path) -> None:
    def lines(*arguments: object) -> list[str]:
        file = tmp_path / "x.png"
        done = run("generate", toy_bundle, "a red ring", "--steps", 2, "-o", file, *arguments)
        assert done.exit_code == 0, done.output
        return [line for line in done.stderr.splitlines() if "GB" in line or "memory" in line]

    usual, (mode, together) = lines("--memory-report"), lines("--memory-report", "--keep-loaded")
    assert usual[0].startswith("memory: parts in turn")
    assert [line.split()[0] for line in usual[1:]] == ["text_encoder", "unet", "vae_decoder"]
    assert mode.startswith("memory: all parts loaded")
    assert together.startswith("all parts")
    most = max(float(line.split()[1]) for line in usual[1:])
    limited = lines("--memory-report", "--max-memory", f"{most + 0.01}GB")
    assert [line.split()[0] for line in limited[1:4]] == ["text_encoder", "unet", "vae_decoder"]
    assert lines() == []


@pytest.mark.parametrize(
    ("taken", "told"),
    [(1_900_000_000, []), (3e9, ["3.00 GB were taken, more than the limit of 2.00 GB"])],
)
def test_generate_tells_when_a_limit_was_exceeded(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: float, told: list[str]
) -> None:
    monkeypatch.setattr("sdcompress.runtime.residence.resident_bytes", lambda: int(taken))
    done = run("generate", toy_bundle, "a red ring", "--steps", 2, "--max-memory", "2GB",
               "-o", tmp_path / "x.png")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert [line for line in done.stderr.splitlines() if "GB" in line] == told


def test_generate_counts_seeds_and_takes_sizes(toy_bundle: Path, tmp_path: Path) -> None:
    done = run(
        "generate", toy_bundle, "a red ring", "--count", 2, "--size", "64x96", "--steps", 2,
        "--scheduler", "ddim", "-o", tmp_path / "ring.png",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    files = sorted(tmp_path.glob("ring_*.png"))
    assert [file.name for file in files] == ["ring_000.png", "ring_001.png"]
    pictures = [Image.open(file) for file in files]
    assert {picture.size for picture in pictures} == {(64, 96)}
    assert pictures[0].tobytes() != pictures[1].tobytes()


def test_generate_begins_with_pictures(bundle: Path, tmp_path: Path) -> None:
    first, mask = tmp_path / "first.png", tmp_path / "mask.png"
    render(parse("a large red ring"), random.Random(0)).save(first)
    Image.new("L", (128, 128), 0).save(mask)
    kept = tmp_path / "kept.png"
    done = run(
        "generate", bundle, "a blue star", "--steps", 4, "--image", first, "--mask", mask,
        "-o", kept,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    before, after = (np.asarray(Image.open(file), float) for file in (first, kept))
    assert np.abs(before - after).mean() < 6  # all is kept; it went through the VAE once more
    changed = tmp_path / "changed.png"
    done = run(
        "generate", bundle, "a blue star", "--steps", 4, "--image", first, "--strength", 0.9,
        "-o", changed,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    with Image.open(changed) as picture:
        assert picture.text["strength"] == "0.9"
        assert np.abs(before - np.asarray(picture, float)).mean() > 1


def test_a_preview_is_shown_beside_the_picture(bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "star.png"
    done = run("generate", bundle, "a blue star", "--steps", 11, "--preview", "-o", file)
    assert done.exit_code == 0, done.output
    with Image.open(file) as picture, Image.open(tmp_path / "star.preview.png") as preview:
        assert preview.text["preview"] == "10 of 11"
        difference = np.asarray(picture, float) - np.asarray(preview, float)
        assert 0 < np.abs(difference).mean() < 40


def test_generate_takes_several_prompts(toy_bundle: Path, tmp_path: Path) -> None:
    done = run(
        "generate", toy_bundle, "a red ring", "a (blue:1.3) star", "--count", 2, "--steps", 2,
        "--batch", 3, "--streams", 2, "--prompt-weights", "--noise", "torch",
        "-o", tmp_path / "x.png",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    files = sorted(tmp_path.glob("x_*.png"))
    told = []
    for file in files:
        with Image.open(file) as picture:
            told.append((picture.text["prompt"], picture.text["seed"]))
    assert told == [
        (prompt, seed) for prompt in ("a red ring", "a (blue:1.3) star") for seed in ("42", "43")
    ]


def test_a_picture_that_cannot_be_decoded_leaves_the_others_their_names(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, calls = Pipeline.decode, iter(range(3))

    def breaking(pipeline: Pipeline, latents: np.ndarray, settings: Settings) -> np.ndarray:
        if next(calls) == 1:
            raise NotFiniteError("the second")
        return plain(pipeline, latents, settings)

    monkeypatch.setattr(Pipeline, "decode", breaking)
    done = run(
        "generate", toy_bundle, "a red ring", "--count", 3, "--seed", 5, "--steps", 2,
        "-o", tmp_path / "x.png",
    )  # fmt: skip
    assert done.exit_code == 2
    assert "the second" in done.stderr
    seeds = {}
    for file in tmp_path.glob("*.png"):
        with Image.open(file) as picture:
            seeds[file.name] = picture.text["seed"]
    assert seeds == {"x_000.png": "5", "x_002.png": "7"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--mask", Path(__file__)), "go with --image"),
        (("--image", Path(__file__)), "cannot be read as a picture"),
        (("--eta", "0.5"), "only ddim knows it"),
        (("--preview", "--count", "2"), "one by one"),
        (("--prompt-weights", "--", "a (red"), "never closed"),
        (("--mode", "throughput", "--device", "AUTO"), "sdcompress bench"),
        (("--public-key", Path(__file__)), "public key in PEM form"),
        (("--size", "big"), "expected WIDTHxHEIGHT"),
        (("--max-memory", "10MB"), "0.01 GB does not suffice"),
        (("--max-memory", "2GB", "--keep-loaded"), "parts in turn"),
        (("--max-memory", "2"), "2GB, 1500MB or 1.5GiB"),
        (("--max-memory", "2GB", "--image", PICTURE), "goes without --image"),
        (("--max-memory", "2GB", "--preview"), "and --preview: what those take"),
        (("--size", "100x100"), "multiple of 8"),
        (("--size", "²x²"), "expected WIDTHxHEIGHT"),
        (("--size", "8000000x8000000"), "at most 4096"),
        (("--scheduler", "magic"), "Choose one of"),
        (("--device", "TPU"), "CPU"),
        (("-o", "no/such/folder/x.png"), "does not exist"),
        (("-o", "x.jpg"), "PNG"),
    ],
)
def test_generate_faults(
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, str],
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)  # where pictures go by default
    assert expected in fault("generate", bundle, "a red ring", *arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("sampling", [None, {"steps": "ten"}, {"stepz": 10}])
def test_a_manifest_without_usable_settings_is_a_fault(
    bundle: Path, tmp_path: Path, sampling: Any
) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["recipe"]["sampling"] = sampling
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert "recipe.sampling" in fault("generate", copy, "a red ring")


def test_the_library_draws_with_the_bundles_settings_too(toy_bundle: Path, tmp_path: Path) -> None:
    from sdcompress import Pipeline

    done = run("generate", toy_bundle, "a red ring", "--seed", 5, "-o", tmp_path / "ring.png")
    assert done.exit_code == 0, done.output
    drawn = Pipeline.load(toy_bundle).generate("a red ring", seed=5)
    with Image.open(tmp_path / "ring.png") as picture:
        assert picture.tobytes() == drawn.tobytes()


def test_a_scheduler_this_runtime_lacks_can_be_replaced_by_name(
    baseline: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(baseline, tmp_path / "copy"))
    file = copy / "scheduler/scheduler_config.json"
    config = json.loads(file.read_text()) | {"_class_name": "EDMEulerScheduler"}
    file.write_text(json.dumps(config))
    arguments = ("generate", copy, "a red ring", "--steps", 2, "-o", tmp_path / "ring.png")
    assert "Choose one by name" in fault(*arguments)
    assert run(*arguments, "--scheduler", "ddim").exit_code == 0


def test_inspect_shows_layers_by_precision(bundle: Path) -> None:
    text = run("inspect", bundle).output
    assert "text_encoder" in text
    assert "x int8 weights" in text
    assert "total" in text
    single = run("inspect", bundle / "unet", "--layers").output
    assert "conv_in" in single
    assert "openvino_model.xml" in fault("inspect", bundle / "scheduler")


def test_inspect_says_what_peers_can_draw(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    assert "openvino-genai draws with PNDMScheduler" in run("inspect", copy).output
    changed = run("inspect", copy, "--peer-scheduler", "euler").output
    assert "peers now find EulerDiscreteScheduler" in changed
    assert "this runtime draws with dpmsolver++" in changed
    assert run("verify", copy).exit_code == 0
    assert "choose one of ddim" in fault("inspect", copy, "--peer-scheduler", "unipc")
    file = copy / "scheduler/scheduler_config.json"
    file.write_text(file.read_text().replace("EulerD", "UniPCMultistepScheduler EulerD"))
    assert "not intact" in fault("inspect", copy, "--peer-scheduler", "ddim")


def test_a_bundle_without_a_scheduler_of_openvino_genai_says_so(
    baseline: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(baseline, tmp_path / "copy"))
    file = copy / "scheduler/scheduler_config.json"
    file.write_text(file.read_text().replace("PNDMScheduler", "DPMSolverMultistepScheduler"))
    assert "openvino-genai has no DPMSolverMultistepScheduler" in run("inspect", copy).output


def test_a_bundle_travels_as_one_file(bundle: Path, tmp_path: Path) -> None:
    archive = tmp_path / "bundle.sdbundle"
    assert run("pack", bundle, archive).exit_code == 0
    assert run("unpack", archive, tmp_path / "back").exit_code == 0
    assert run("verify", tmp_path / "back").exit_code == 0
    assert "exists already" in fault("unpack", archive, tmp_path / "back")
    assert "damaged or no bundle archive" in fault("unpack", Path(__file__), tmp_path / "no")


def test_a_signed_bundle_is_told_from_others(toy_bundle: Path, tmp_path: Path) -> None:
    from test_runtime_trust import write_keys

    private, public = write_keys(tmp_path / "key")
    copy = Path(shutil.copytree(toy_bundle, tmp_path / "copy"))
    assert "not signed" in fault("verify", copy, "--public-key", public)
    assert run("sign", copy, "--key", private).exit_code == 0
    assert "signed by the key given" in run("verify", copy, "--public-key", public).output
    done = run(
        "generate", copy, "a red ring", "--steps", 1, "--public-key", public,
        "-o", tmp_path / "x.png",
    )  # fmt: skip
    assert done.exit_code == 0, done.output


def test_bench_finds_and_remembers_the_best_streams_and_batch(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDCOMPRESS_CACHE", str(tmp_path / "cache"))
    done = run(
        "bench", bundle, "--streams", 2, "--batch", 1, "--threads", 1, "--steps", 2,
        "--images", 2,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    rows = [line.split() for line in done.output.splitlines() if line.startswith(" ")]
    assert [row[:5] for row in rows] == [
        ["2", "1", shapes, "1", "auto"] for shapes in ("dynamic", "fixed")
    ]
    seconds, speeds = ([float(row[column]) for row in rows] for column in (5, 7))
    assert "latency" in " ".join(rows[seconds.index(min(seconds))])
    assert "throughput" in " ".join(rows[speeds.index(max(speeds))])
    start = next(line for line in done.output.splitlines() if line.startswith("start to"))
    cold, warm, kept = map(float, re.findall(r"([\d.]+) (?:s|MB)\b", start))
    assert 0 < warm < cold * 1.5
    assert kept > 1  # the demo's models
    remembered = json.loads(next((tmp_path / "cache/tuning").iterdir()).read_text())
    best = rows[speeds.index(max(speeds))]
    assert remembered["throughput"]["streams"] == int(best[0])
    assert remembered["throughput"]["threads"] == 1
    assert "sdcompress bench" in fault(
        "generate", bundle, "a red ring", "--mode", "throughput", "--precision", "f32"
    )
    drawn = run(
        "generate", bundle, "a red ring", "--mode", "throughput", "--steps", 2,
        "-o", tmp_path / "x.png",
    )  # fmt: skip
    assert drawn.exit_code == 0, drawn.output


@pytest.mark.parametrize(("until", "way"), [(1.0, "in one batch"), (0.5, "as is quickest")])
def test_branches_are_as_measured_where_guidance_lasts(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, until: float, way: str
) -> None:
    monkeypatch.setenv("SDCOMPRESS_CACHE", str(tmp_path / "cache"))
    best = {"latency": Cell(Tuning(branches="in one batch"), 1.0, 1.0, None)}
    remember(toy_bundle, "CPU", None, best)
    drawn = run(
        "generate", toy_bundle, "a red ring", "--mode", "latency", "--steps", 2, "--memory-report",
        "--guidance-end", until, "--verify", "never", "-o", tmp_path / "x.png",
    )  # fmt: skip
    assert drawn.exit_code == 0, drawn.output
    assert f"guidance branches {way}" in drawn.output
    assert not (tmp_path / "cache/embeddings").exists()  # their hashes were not compared


def test_verify_notices_a_changed_byte(bundle: Path, tmp_path: Path) -> None:
    assert "all as the manifest says" in run("verify", bundle).output
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    weights = copy / "unet/openvino_model.bin"
    data = bytearray(weights.read_bytes())
    data[1000] ^= 255
    weights.write_bytes(data)
    (copy / "tokenizer/vocab.json").unlink()
    message = fault("verify", copy)
    assert "unet/openvino_model.bin: content differs" in message
    assert "tokenizer/vocab.json: missing" in message


def test_the_manifest_says_what_it_is(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["schema"] == 1
    assert manifest["model"]["id"] == "demo"
    assert manifest["recipe"]["name"] == "unet_int8"
    assert {"openvino", "nncf", "sdcompress"} <= manifest["versions"].keys()
    assert "clip_score" in manifest["quality"]


def test_compare_prints_a_table(bundle: Path) -> None:
    done = run("compare", bundle, bundle)
    assert done.exit_code == 0
    assert "CLIP score" in done.output
    assert "unet_int8 (2)" in done.output


def test_toolkit_commands_name_the_extra_in_a_base_install(tmp_path: Path) -> None:
    blocker = tmp_path / "sitecustomize.py"
    blocker.write_text(
        "import sys\nfor name in ('pydantic', 'yaml', 'rich'): sys.modules[name] = None\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "sdcompress", "quantize", "unet_int8"],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(tmp_path), "PATH": ""},
    )
    assert done.returncode == 2, done.stderr
    assert 'pip install "sdcompress[toolkit]"' in done.stderr
