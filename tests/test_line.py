"""The line's stages: what they depend on, and what makes them run again."""

import shutil
from pathlib import Path

import openvino as ov
import pytest
import torch
from conftest import quick_recipe
from safetensors.torch import save_file

from sdcompress import activations, line
from sdcompress.activations import Activation, Statistics
from sdcompress.assessment import evaluate
from sdcompress.compress import Recorded, compress
from sdcompress.errors import BundleError, CalibrationError
from sdcompress.line import Line, find_material
from sdcompress.opening import STORE
from sdcompress.processor import has_vnni
from sdcompress.progress import SilentProgress
from sdcompress.recipe import Recipe
from sdcompress.runtime.errors import DeviceError
from sdcompress.store import Store
from sdcompress.workflow import calibrate, quantize

QUIET = SilentProgress()


def line_of(recipe: Recipe, folder: Path) -> Line:
    return Line(recipe, find_material(recipe, QUIET), Store.open(folder / STORE, "test"), QUIET)


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ("name=other", {"convert", "calibrate", "ranges", "compress"}),
        ("compress.unet.preset=performance", {"convert", "calibrate", "ranges"}),
        ("compress.unet.ignored.patterns=['.*time.*']", {"convert", "calibrate", "ranges"}),
        ("compress.unet.smooth_quant_alpha=0.5", {"convert", "calibrate", "ranges"}),
        ("compress.unet={method: hybrid, preset: performance}", {"convert", "calibrate", "ranges"}),
        ("calibrate.statistics=auto", {"convert", "calibrate"}),
        ("calibrate.seed=97", {"convert"}),
        (
            "compress.unet={method: int8_weights, symmetric: true}",
            {"convert", "calibrate", "ranges"},
        ),
        ("convert.weights=stored", set()),
    ],
)
def test_a_change_repeats_only_what_depends_on_it(
    change: str, kept: set[str], bundle: Path, build_folder: Path
) -> None:
    del bundle  # made by the recipe as it is
    assert line_of(quick_recipe("unet_int8", change), build_folder).finished() == kept


def test_bf16_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "executes_bf16", lambda: False)
    find_material(quick_recipe("unet_int8", "calibrate.statistics=auto"), QUIET)
    find_material(quick_recipe("weights_int8", "calibrate.statistics=bf16"), QUIET)
    with pytest.raises(CalibrationError, match="this processor has no BF16"):
        find_material(quick_recipe("unet_int8", "calibrate.statistics=bf16"), QUIET)


@pytest.mark.filterwarnings("ignore")  # raised inside the libraries
def test_a_precision_the_device_lacks_hinders_no_recording(
    bundle: Path, build_folder: Path
) -> None:
    del bundle  # its inputs are found
    told = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    names = {"f16": "FP16", "bf16": "BF16"}
    lacking = next((one for one, name in names.items() if name not in told), None)
    if lacking is None:
        pytest.skip("this CPU executes in every precision")
    recipe = quick_recipe("unet_int8", f"execution_precision={lacking}")
    before = set((build_folder / STORE).glob("calibrate-*"))
    assert calibrate(recipe, build_folder / "recorded") in before
    with pytest.raises(DeviceError, match=f"does not execute in {lacking}"):
        quantize(recipe, build_folder / "lacking")


def test_lora_files_of_a_recipe_make_another_model(
    bundle: Path, build_folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "style.safetensors"
    stem = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    save_file(
        {f"{stem}.lora_A.weight": torch.ones(4, 128), f"{stem}.lora_B.weight": torch.ones(144, 4)},
        file,
    )
    plain = line_of(quick_recipe("unet_int8"), build_folder)
    fused = line_of(
        quick_recipe("unet_int8", f"loras=[{{file: {file}, scale: 0.5}}]"), build_folder
    )
    assert [(lora.file, lora.scale) for lora in fused.source.loras] == [(file, 0.5)]
    assert fused.finished() == set()
    assert fused.converted_key != plain.converted_key
    with pytest.raises(BundleError, match="other LoRA files"):
        evaluate(bundle, tmp_path / "x", overrides=(f"loras=[{{file: {file}, scale: 1}}]",))


@pytest.mark.filterwarnings("ignore")  # raised inside the libraries
def test_statistics_that_turn_out_to_be_missing_are_collected_too(
    baseline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = quick_recipe(
        "unet_int8",
        "sampling.steps=2", "calibrate.prompts=1", "calibrate.samples=2",
        "compress={text_encoder: {method: int8}}",
    )  # fmt: skip
    store = tmp_path / STORE
    shutil.copytree(baseline, store / baseline.name)
    found: list[tuple[Activation, ...]] = []

    def all_but_some(model: object) -> tuple[Activation, ...]:
        found.append(watch_list(model))  # type: ignore[arg-type]
        return found[0][::2]

    watch_list = activations.watch_list
    monkeypatch.setattr(activations, "watch_list", all_but_some)
    run = line_of(recipe, tmp_path)
    compressed = run.compressed()["text_encoder"]
    parts = sorted(store.glob("ranges-*"))
    assert len(parts) > 1
    names = [name for part in parts for name in Statistics(part).names()]
    assert len(names) == len(set(names))  # nothing is collected twice
    monkeypatch.undo()
    whole = tmp_path / "whole"
    inputs = line.ModelInputs(run.calibrated, "text_encoder", 1)
    activations.collect(baseline / "text_encoder/openvino_model.xml", None, inputs, whole, "f32")
    expected = compress(
        baseline / "text_encoder",
        recipe.compress.text_encoder,
        tmp_path / "expected",
        Recorded(inputs, (whole,)),
        has_vnni(),
    )
    constants = [(one.folder / "openvino_model.bin").read_bytes() for one in (compressed, expected)]
    assert constants[0] == constants[1]
