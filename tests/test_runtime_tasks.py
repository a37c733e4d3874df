"""Every task and scheduler against diffusers: the demo's FP32 IR, the same seed, one picture."""

import json
import logging
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdcompress.demo import MODEL_DIR
from sdcompress.quiet import quiet_libraries
from sdcompress.runtime import SCHEDULERS, InputError, Job, Pipeline, Settings
from sdcompress.runtime.schedulers import class_of

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

PROMPT, NEGATIVE = "a small red circle above a large blue square", "green star"
STEPS, GUIDANCE_SCALE, SEED = 6, 5.0, 7
SIZE = 128


class SoundLMS(diffusers.LMSDiscreteScheduler):  # type: ignore[misc]  # untyped package
    """LMS that begins later without counting calls that it has not made."""

    def set_begin_index(self, begin_index: int = 0) -> None:
        self.sigmas, self.timesteps = self.sigmas[begin_index:], self.timesteps[begin_index:]
        super().set_begin_index(0)


@pytest.fixture(autouse=True)
def _warnings_of_libraries_ignored() -> Iterator[None]:
    with warnings.catch_warnings(), quiet_libraries():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def candidate(baseline: Path) -> Pipeline:
    return Pipeline.load(baseline, execution_precision="f32", verify="never")


@pytest.fixture(scope="module")
def parts() -> dict[str, Any]:
    with quiet_libraries():
        whole = diffusers.StableDiffusionPipeline.from_pretrained(
            MODEL_DIR, torch_dtype=torch.float32
        )
    return dict(whole.components)


@pytest.fixture(scope="module")
def image(candidate: Pipeline) -> Image.Image:
    settings = Settings(steps=12, guidance_scale=5.0, scheduler="dpmsolver++")
    return candidate.generate("a large green star on a yellow background", settings=settings)


@pytest.fixture(scope="module")
def mask() -> Image.Image:
    pixels = np.zeros((SIZE, SIZE), np.uint8)
    pixels[30:100, 20:90] = 255
    return Image.fromarray(pixels)


def scheduler_of_diffusers(name: str, folder: Path) -> Any:
    values = json.loads((folder / "scheduler/scheduler_config.json").read_text())
    forced = {"algorithm_type": "sde-dpmsolver++"} if name == "sde-dpmsolver++" else {}
    kind = SoundLMS if name == "lms" else getattr(diffusers, class_of(name))
    return kind.from_config(values, **forced)


def theirs(task: str, parts: dict[str, Any], name: str, folder: Path, **options: Any) -> Any:
    kind = getattr(diffusers, f"StableDiffusion{task}Pipeline")
    pipeline = kind(
        **parts | {"scheduler": scheduler_of_diffusers(name, folder)},
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        PROMPT,
        negative_prompt=NEGATIVE,
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(SEED),
        output_type="np",
        **({"guidance_scale": GUIDANCE_SCALE} | options),
    ).images[0]


def ours(candidate: Pipeline, name: str, **options: Any) -> Image.Image:
    """Options are those of settings or of a job."""
    known = {field.name for field in fields(Settings)}
    chosen = {key: value for key, value in options.items() if key in known}
    job = {key: value for key, value in options.items() if key not in known}
    base = {"steps": STEPS, "guidance_scale": GUIDANCE_SCALE, "scheduler": name, "noise": "torch"}
    settings = Settings(**(base | chosen))
    return candidate.generate(PROMPT, negative_prompt=NEGATIVE, seed=SEED, settings=settings, **job)


def assert_same_picture(actual: Image.Image, expected: Any) -> None:
    difference = np.asarray(actual, dtype=np.float64) / 255 - expected
    assert expected.std() > 0.05, "a plain picture would prove nothing"
    assert np.abs(difference).mean() < 1 / 255
    assert 10 * np.log10(1 / np.mean(difference**2)) > 45


def assert_inpainted_alike(
    candidate: Pipeline,
    parts: dict[str, Any],
    name: str,
    image: Image.Image,
    mask: Image.Image,
    strength: float,
) -> None:
    size = {"height": SIZE, "width": SIZE}
    start = {"image": image, "strength": strength}
    expected = theirs("Inpaint", parts, name, candidate.folder, mask_image=mask, **start, **size)
    assert_same_picture(ours(candidate, name, mask=mask, **start), expected)


@pytest.mark.parametrize("name", list(SCHEDULERS))
def test_text_to_image(candidate: Pipeline, parts: dict[str, Any], name: str) -> None:
    expected = theirs("", parts, name, candidate.folder)
    assert_same_picture(ours(candidate, name), expected)


def test_fresh_noise_in_ddim(candidate: Pipeline, parts: dict[str, Any]) -> None:
    expected = theirs("", parts, "ddim", candidate.folder, eta=0.7)
    assert_same_picture(ours(candidate, "ddim", eta=0.7), expected)


@pytest.mark.parametrize("name", list(SCHEDULERS))
def test_image_to_image(
    candidate: Pipeline, parts: dict[str, Any], image: Image.Image, name: str
) -> None:
    expected = theirs("Img2Img", parts, name, candidate.folder, image=image, strength=0.7)
    assert_same_picture(ours(candidate, name, image=image, strength=0.7), expected)


@pytest.mark.parametrize(
    ("name", "strength"), [*((name, 0.7) for name in SCHEDULERS), ("pndm", 1.0), ("euler", 1.0)]
)
def test_inpainting_by_blending(
    candidate: Pipeline,
    parts: dict[str, Any],
    image: Image.Image,
    mask: Image.Image,
    name: str,
    strength: float,
) -> None:
    assert_inpainted_alike(candidate, parts, name, image, mask, strength)


@pytest.fixture(scope="module")
def inpainting(parts: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The demo with a small, untrained UNet of 9 input channels, exported by optimum-intel."""
    exporters = pytest.importorskip("optimum.exporters.openvino")
    intel = pytest.importorskip("optimum.intel")
    root = tmp_path_factory.mktemp("inpainting")
    torch.manual_seed(0)
    small = {
        "block_out_channels": [32, 64],
        "attention_head_dim": 2,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    }
    own = dict(parts["unet"].config) | {"in_channels": 9, **small}
    wide = {**parts, "unet": diffusers.UNet2DConditionModel.from_config(own)}
    with warnings.catch_warnings(), quiet_libraries():
        warnings.simplefilter("ignore")
        pipeline = diffusers.StableDiffusionPipeline(**wide, requires_safety_checker=False)
        pipeline.save_pretrained(root / "model")
        exporters.main_export(
            str(root / "model"),
            str(root / "ir"),
            task="text-to-image",
            library_name="diffusers",
            ov_config=intel.OVConfig(dtype="fp32"),
        )
    return {"parts": wide, "candidate": Pipeline.load(root / "ir", execution_precision="f32")}


def test_a_folder_of_optimum_intel_is_opened_with_a_warning(
    inpainting: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    logging.disable(logging.NOTSET)  # which the fixture that silences libraries sets
    Pipeline.load(inpainting["candidate"].folder)
    assert "nothing in it was verified" in caplog.text


@pytest.mark.parametrize("strength", [0.7, 1.0])
def test_inpainting_with_a_unet_of_9_channels(
    inpainting: dict[str, Any], image: Image.Image, mask: Image.Image, strength: float
) -> None:
    candidate, parts = inpainting["candidate"], inpainting["parts"]
    assert_inpainted_alike(candidate, parts, "ddim", image, mask, strength)


def test_a_unet_of_9_channels_needs_image_and_mask(
    inpainting: dict[str, Any], image: Image.Image
) -> None:
    with pytest.raises(InputError, match="an image and a mask"):
        inpainting["candidate"].generate(PROMPT)
    with pytest.raises(InputError, match="a mask as well"):
        inpainting["candidate"].generate(PROMPT, image=image)


def test_pictures_of_other_sizes_are_fitted(
    candidate: Pipeline, parts: dict[str, Any], image: Image.Image
) -> None:
    odd = image.resize((101, 87))
    expected = theirs("Img2Img", parts, "ddim", candidate.folder, image=odd, strength=0.7)
    drawn = ours(candidate, "ddim", image=odd, strength=0.7)
    assert drawn.size == (96, 80)
    assert_same_picture(drawn, expected)


@pytest.mark.parametrize("size", [(128, 64), (72, 136)])
def test_other_sizes(candidate: Pipeline, parts: dict[str, Any], size: tuple[int, int]) -> None:
    """Any multiple of 8, also where the UNet's levels do not divide evenly."""
    width, height = size
    expected = theirs("", parts, "dpmsolver++", candidate.folder, width=width, height=height)
    assert_same_picture(ours(candidate, "dpmsolver++", width=width, height=height), expected)


def test_without_guidance(candidate: Pipeline, parts: dict[str, Any]) -> None:
    expected = theirs("", parts, "euler", candidate.folder, guidance_scale=1.0)
    assert_same_picture(ours(candidate, "euler", guidance_scale=1.0), expected)


@pytest.mark.parametrize("name", ["ddim", "pndm", "euler", "dpmsolver++", "unipc"])
def test_v_prediction(baseline: Path, parts: dict[str, Any], tmp_path: Path, name: str) -> None:
    """The demo was not trained for it, but what it says can be read that way."""
    folder = Path(shutil.copytree(baseline, tmp_path / "model"))
    file = folder / "scheduler/scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"prediction_type": "v_prediction"}))
    candidate = Pipeline.load(folder, execution_precision="f32", verify="never")
    assert_same_picture(ours(candidate, name), theirs("", parts, name, folder))


def test_embeddings(candidate: Pipeline, parts: dict[str, Any]) -> None:
    texts = [PROMPT, "", "red " * 100]
    ids = parts["tokenizer"](
        texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        expected = parts["text_encoder"](ids)[0].numpy()
    np.testing.assert_allclose(candidate.encode(texts), expected, atol=1e-3)


def test_a_batch_of_different_prompts_and_seeds(candidate: Pipeline) -> None:
    settings = Settings(steps=4, guidance_scale=5.0, scheduler="euler_ancestral", noise="torch")
    jobs = [
        Job("a red circle", seed=1),
        Job("a blue square", "green star", seed=2),
        Job("a red circle", "blue square", seed=3),
    ]
    together = candidate.draw(jobs, settings)
    for job, picture in zip(jobs, together, strict=True):
        (alone,) = candidate.draw([job], settings)
        difference = np.asarray(picture, int) - np.asarray(alone, int)
        assert np.abs(difference).max() <= 2


def test_given_latents_take_the_place_of_the_first_noise(candidate: Pipeline) -> None:
    settings = Settings(steps=2, scheduler="ddim")
    latents = candidate.initial_latents(9)
    given = candidate.generate(PROMPT, settings=settings, latents=latents)
    assert given.tobytes() == candidate.generate(PROMPT, settings=settings, seed=9).tobytes()
    with pytest.raises(InputError, match=r"\[4, 16, 16\]"):
        candidate.generate(PROMPT, settings=settings, latents=latents[:, :, :8])


def test_what_does_not_go_together_is_refused(candidate: Pipeline, image: Image.Image) -> None:
    with pytest.raises(InputError, match="needs an image"):
        Job(PROMPT, mask=image)
    with pytest.raises(InputError, match="strength"):
        Job(PROMPT, image=image, strength=0.0)
    with pytest.raises(InputError, match="same size"):
        starts = [
            candidate.begin(Job(PROMPT), Settings(steps=2, width=width)) for width in (64, 128)
        ]
        text = candidate.encode([PROMPT])
        candidate.denoise(starts, text, text, Settings(steps=2))
    with pytest.raises(InputError, match="begin alike"):
        candidate.draw([Job(PROMPT), Job(PROMPT, image=image)], Settings(steps=8))
    with pytest.raises(TypeError, match="colour"):
        candidate.generate(PROMPT, colour="red")
