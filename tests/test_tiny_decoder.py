"""The distilled decoder: found, converted and drawn with, as diffusers does."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from test_source import COMMIT, put_in_cache
from toy_model import write_toy_model

from sdcompress.demo import TINY_DECODER_DIR
from sdcompress.errors import ConversionError, RecipeError, SourceError
from sdcompress.executed import executed_layers
from sdcompress.line import find_material
from sdcompress.progress import SilentProgress
from sdcompress.recipe import load_recipe, parse_recipe
from sdcompress.runtime import BundleError, Job, Pipeline, Settings, draw_in_phases
from sdcompress.runtime.settings import DECODERS
from sdcompress.shipped import shipped_folder
from sdcompress.source import locate
from sdcompress.tiny_decoder import convert_tiny_decoder, locate_tiny_decoder

TINY = Settings(steps=2, decoder="tiny")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The demo's, which a test may damage."""
    return Path(shutil.copytree(TINY_DECODER_DIR, tmp_path / "tiny"))


def change(folder: Path, **values: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def done(count: int, of: int) -> None:
    assert count == of


@pytest.mark.parametrize("scaling", [1.0, 2.0])
@pytest.mark.parametrize("stored", [True, False])
def test_its_pictures_are_those_of_diffusers(
    copy: Path, tmp_path: Path, baseline: Path, scaling: float, stored: bool
) -> None:
    change(copy, scaling_factor=scaling)
    folder = Path(shutil.copytree(baseline, tmp_path / "model"))
    convert_tiny_decoder(locate_tiny_decoder(str(copy), locate("demo")), folder, stored, done)
    latents = np.random.default_rng(0).standard_normal((2, 4, 16, 24)).astype(np.float32)
    model = AutoencoderTiny.from_pretrained(copy).float().eval()
    with torch.no_grad():
        wanted = model.decode(torch.from_numpy(latents) / scaling).sample.numpy()
    pixels = np.rint((wanted.transpose(0, 2, 3, 1) / 2 + 0.5).clip(0, 1) * 255)
    pipeline = Pipeline.load(folder, execution_precision="f32", verify="never")
    drawn = pipeline.decode(latents, TINY)
    assert drawn.shape == (2, 128, 192, 3)
    assert np.abs(drawn.astype(int) - pixels).max() <= 1
    weights = (folder / "tiny_decoder/openvino_model.bin").stat().st_size
    parameters = sum(one.numel() for one in model.decoder.parameters())
    assert weights / parameters == pytest.approx(2 if stored else 4, rel=0.02)


def test_it_makes_the_picture_and_the_vae_is_not_loaded(bundle: Path) -> None:
    pipeline = Pipeline.load(bundle, verify="never")
    job = Job("a small red circle above a large blue square", seed=1)
    tiny = Settings(25, 5.0, "dpmsolver++", decoder="tiny")
    whole = pipeline.draw([job], tiny)[0]
    phases: list[str] = []
    ((_, picture),) = draw_in_phases(pipeline, [job], tiny, on_phase=phases.append)
    assert phases == ["text_encoder", "unet", "tiny_decoder"]
    assert picture.tobytes() == whole.tobytes()
    exact = pipeline.draw([job], replace(tiny, decoder="vae"))[0]
    difference = np.asarray(whole, float) - np.asarray(exact, float)
    # Another decoder, the same picture: 22 dB are asked of it, other pictures have 15.
    assert 0 < np.square(difference).mean() < 255**2 / 10**2.2


def test_previews_are_made_by_the_quickest_decoder(bundle: Path, tmp_path: Path) -> None:
    latents = np.random.default_rng(0).standard_normal((2, 4, 16, 16)).astype(np.float32)
    with_one = Pipeline.load(bundle, verify="never")
    tiny, vae = (with_one.decode(latents[:1], replace(TINY, decoder=one)) for one in DECODERS[::-1])
    assert np.array_equal(np.asarray(with_one.preview(latents)), tiny[0])
    assert not np.array_equal(tiny, vae)
    without = Pipeline.load(write_toy_model(tmp_path / "model"))
    latents = latents[:, :, :4, :4]
    assert np.array_equal(np.asarray(without.preview(latents)), without.decode(latents)[0])


def test_what_executes_is_told_of_the_baselines_way_to_draw(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["recipe"]["runtime"]["decoder"] = "tiny"
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert list(executed_layers(copy)) == ["text_encoder", "unet", "vae_decoder"]
    assert Pipeline.load(copy, verify="never").settings.decoder == "tiny"


def test_a_model_without_one_says_so_before_any_work(tmp_path: Path) -> None:
    pipeline = Pipeline.load(write_toy_model(tmp_path / "model"))
    steps: list[object] = []
    with pytest.raises(BundleError, match="has no tiny_decoder"):
        pipeline.draw([Job("a red ring")], TINY, on_step=lambda step: bool(steps.append(step)))
    assert steps == []


def test_one_on_the_hub_is_pinned_to_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in_cache(tmp_path / "hub", "somebody/tiny", TINY_DECODER_DIR)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    found = locate_tiny_decoder("somebody/tiny", locate("demo"))
    assert found.record() == {"id": "somebody/tiny", "revision": COMMIT}
    with pytest.raises(SourceError, match="cannot get nobody/tiny from the hub"):
        locate_tiny_decoder("nobody/tiny", locate("demo"))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"_class_name": "AutoencoderKL"}, "is of AutoencoderKL"),
        ({"latent_channels": 16}, "has 16 latent channels, the VAE of demo has 4"),
        ({"num_decoder_blocks": [1, 1, 1]}, "has 3 levels, the VAE of demo has 4"),
        ({"num_decoder_blocks": 4}, "has None levels"),
        ({"upsampling_scaling_factor": 1}, "has 1 times as wide a level"),
    ],
)
def test_one_of_another_model_is_refused(
    copy: Path, values: dict[str, object], expected: str
) -> None:
    change(copy, **values)
    with pytest.raises(SourceError, match=expected):
        locate_tiny_decoder(str(copy), locate("demo"))


@pytest.mark.parametrize("name", ["config.json", "diffusion_pytorch_model.safetensors"])
def test_missing_and_damaged_files_are_named(copy: Path, name: str) -> None:
    (copy / name).write_bytes(b"{")
    with pytest.raises(SourceError, match=rf"{name}: not"):
        locate_tiny_decoder(str(copy), locate("demo"))
    (copy / name).unlink()
    with pytest.raises(SourceError, match=f"{name} is missing"):
        locate_tiny_decoder(str(copy), locate("demo"))


def test_settings_that_are_no_object_are_named(copy: Path) -> None:
    (copy / "config.json").write_text("[]")
    with pytest.raises(SourceError, match=r"config\.json: not a JSON object"):
        locate_tiny_decoder(str(copy), locate("demo"))


def test_the_demos_goes_with_the_demo_only(tmp_path: Path, model_folder: Path) -> None:
    other = locate(str(shutil.copytree(model_folder, tmp_path / "other")))
    with pytest.raises(SourceError, match="goes with the model 'demo'"):
        locate_tiny_decoder("demo", other)
    told: list[str] = []
    progress = SilentProgress()
    progress.notice = told.append  # type: ignore[method-assign]
    file = shipped_folder("recipes") / "unet_int8.yaml"
    model = f"model={json.dumps(other.id)}"
    assert find_material(load_recipe(file, (model,)), progress).tiny_decoder is None
    assert "tiny decoder is left out" in told[0]
    with pytest.raises(SourceError, match="goes with the model 'demo'"):
        find_material(load_recipe(file, (model, "runtime.decoder=tiny")), progress)


def test_a_name_that_is_nothing_is_refused() -> None:
    with pytest.raises(SourceError, match="neither 'demo', an existing folder, nor a hub id"):
        locate_tiny_decoder("no such thing", locate("demo"))


def test_weights_that_do_not_fit_their_settings_are_refused(copy: Path, tmp_path: Path) -> None:
    change(copy, decoder_block_out_channels=[48, 48, 48, 48])
    found = locate_tiny_decoder(str(copy), locate("demo"))
    with pytest.raises(ConversionError, match="could not be converted"):
        convert_tiny_decoder(found, tmp_path / "out", True, done)


def test_a_recipe_that_draws_with_one_has_to_bring_it() -> None:
    recipe = load_recipe(shipped_folder("recipes") / "weights_int8.yaml")
    data = recipe.as_dict() | {"runtime": {"decoder": "tiny"}}
    with pytest.raises(RecipeError, match=r"runtime\.decoder.*set convert\.tiny_decoder"):
        parse_recipe(Path("changed"), data)
    with_it = parse_recipe(Path("changed"), data, ("convert.tiny_decoder=demo",))
    assert with_it.candidate_settings["decoder"] == "tiny"
