"""The runtime against diffusers on a folder that optimum-intel exported, without a manifest."""

import json
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_model import SCHEDULER, write_toy_tokenizer

from sdcompress.runtime import Pipeline, Settings
from sdcompress.runtime.schedulers import class_of

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

PROMPT, NEGATIVE = "a photo of a small red circle", "blue square"
STEPS = 6


@contextmanager
def third_party_warnings_ignored() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """SD 2.1's classes in miniature with seeded random weights, as a diffusers pipeline."""
    folder = tmp_path_factory.mktemp("diffusers")
    size = write_toy_tokenizer(folder / "tokenizer", single_file=False)
    torch.manual_seed(0)
    with third_party_warnings_ignored():
        text_config = transformers.CLIPTextConfig(
            vocab_size=size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            bos_token_id=size - 2,
            eos_token_id=size - 1,
            pad_token_id=size - 1,
        )
        pipeline = diffusers.StableDiffusionPipeline(
            vae=diffusers.AutoencoderKL(
                block_out_channels=(32,) * 4,
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                latent_channels=4,
            ),
            text_encoder=transformers.CLIPTextModel(text_config),
            tokenizer=transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer"),
            unet=diffusers.UNet2DConditionModel(
                sample_size=8,
                block_out_channels=(32, 64, 64, 64),
                layers_per_block=1,
                attention_head_dim=(2, 4, 4, 4),
                cross_attention_dim=32,
                use_linear_projection=True,
                # Over groups of a few values normalisation is almost a step function, and rounding
                # errors would grow tenfold with each denoising step.
                norm_num_groups=4,
            ),
            scheduler=diffusers.PNDMScheduler.from_config(SCHEDULER),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    _use_the_whole_pixel_range(pipeline.vae)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _use_the_whole_pixel_range(vae: Any) -> None:
    """An untrained decoder paints almost plain grey, in which differences would drown."""
    with torch.no_grad():
        vae.decoder.conv_out.weight *= 3


@pytest.fixture(scope="module")
def folder(baseline: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    exporters = pytest.importorskip("optimum.exporters.openvino")
    intel = pytest.importorskip("optimum.intel")
    root = tmp_path_factory.mktemp("openvino")
    with third_party_warnings_ignored():
        baseline.save_pretrained(root / "diffusers")
        exporters.main_export(
            str(root / "diffusers"),
            str(root / "openvino"),
            task="text-to-image",
            library_name="diffusers",
            ov_config=intel.OVConfig(dtype="fp32"),
        )
    return root / "openvino"


@pytest.fixture(scope="module")
def candidate(folder: Path) -> Pipeline:
    return Pipeline.load(folder, execution_precision="f32")


def draw_with_diffusers(
    baseline: Any, candidate: Pipeline, settings: Settings, size: tuple[int, int]
) -> np.ndarray[Any, Any]:
    """A float picture [h, w, 3] in 0 to 1, from the same latents as the runtime's."""
    scheduler = getattr(diffusers, class_of(str(settings.scheduler)))
    values = json.loads((candidate.folder / "scheduler" / "scheduler_config.json").read_text())
    baseline.scheduler = scheduler.from_config(values)
    picture = baseline(
        PROMPT,
        negative_prompt=NEGATIVE,
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance_scale,
        latents=torch.from_numpy(candidate.initial_latents(3, *size)),
        width=size[0],
        height=size[1],
        output_type="np",
    )
    return np.asarray(picture.images[0])


def assert_same_picture(actual: Any, expected: np.ndarray[Any, Any]) -> None:
    difference = np.asarray(actual, dtype=np.float64) / 255 - expected
    assert expected.std() > 0.1, "a plain picture would prove nothing"
    assert np.abs(difference).mean() < 1 / 255
    assert 10 * np.log10(1 / np.mean(difference**2)) > 45


@pytest.mark.parametrize(("name", "guidance_scale"), [("pndm", 7.5), ("ddim", 1.0), ("euler", 1.0)])
def test_pictures_are_those_of_diffusers(
    baseline: Any, candidate: Pipeline, name: str, guidance_scale: float
) -> None:
    settings = Settings(steps=STEPS, guidance_scale=guidance_scale, scheduler=name)
    expected = draw_with_diffusers(baseline, candidate, settings, (64, 64))
    actual = candidate.generate(PROMPT, negative_prompt=NEGATIVE, seed=3, settings=settings)
    assert_same_picture(actual, expected)


@pytest.mark.parametrize("name", ["ddim", "pndm", "lms", "euler", "heun", "dpmsolver++", "unipc"])
def test_v_prediction_is_that_of_diffusers(
    baseline: Any, folder: Path, tmp_path: Path, name: str
) -> None:
    shutil.copytree(folder, tmp_path / "model")
    path = tmp_path / "model" / "scheduler" / "scheduler_config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"prediction_type": "v_prediction"}))
    candidate = Pipeline.load(tmp_path / "model", execution_precision="f32")
    settings = Settings(steps=STEPS, scheduler=name)
    expected = draw_with_diffusers(baseline, candidate, settings, (64, 64))
    actual = candidate.generate(PROMPT, negative_prompt=NEGATIVE, seed=3, settings=settings)
    assert_same_picture(actual, expected)


@pytest.mark.parametrize("size", [(128, 64), (72, 136), (40, 40)])
def test_other_sizes_are_those_of_diffusers(
    baseline: Any, candidate: Pipeline, size: tuple[int, int]
) -> None:
    """Any multiple of 8, also where the UNet's levels do not divide evenly."""
    settings = Settings(steps=4, scheduler="dpmsolver++", width=size[0], height=size[1])
    expected = draw_with_diffusers(baseline, candidate, settings, size)
    actual = candidate.generate(PROMPT, negative_prompt=NEGATIVE, seed=3, settings=settings)
    assert_same_picture(actual, expected)


def test_embeddings_are_those_of_diffusers(baseline: Any, candidate: Pipeline) -> None:
    texts = [PROMPT, "", "red " * 100]
    ids = baseline.tokenizer(
        texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        expected = baseline.text_encoder(ids)[0].numpy()
    np.testing.assert_allclose(candidate.encode(texts), expected, atol=1e-4)
