"""A bundle opens unchanged in optimum-intel and openvino-genai, and they draw the same picture."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from skimage.metrics import peak_signal_noise_ratio

from sdcompress.interchange import write_peer_scheduler
from sdcompress.runtime import Pipeline, Settings

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.filterwarnings("ignore")  # raised inside the libraries

SCHEDULER = "ddim"  # all three have it and agree
PROMPT = "a large red circle"
STEPS = 8
GUIDANCE_SCALE = 5.0
SEED = 3


@pytest.fixture(scope="module")
def folder(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle, its own scheduler exchanged for one that all three have."""
    copy = Path(shutil.copytree(bundle, tmp_path_factory.mktemp("peers") / "bundle"))
    write_peer_scheduler(copy, SCHEDULER)
    return copy


@pytest.fixture(scope="module")
def ours(folder: Path) -> Pipeline:
    return Pipeline.load(folder, execution_precision="f32")


@pytest.fixture(scope="module")
def picture(ours: Pipeline) -> Any:
    settings = Settings(steps=STEPS, guidance_scale=GUIDANCE_SCALE, scheduler=SCHEDULER)
    return np.asarray(ours.generate(PROMPT, seed=SEED, settings=settings))


def test_optimum_intel_draws_the_same_picture(folder: Path, ours: Pipeline, picture: Any) -> None:
    from optimum.intel import OVStableDiffusionPipeline

    theirs = OVStableDiffusionPipeline.from_pretrained(
        folder, ov_config={"INFERENCE_PRECISION_HINT": "f32", "CACHE_DIR": ""}
    )
    drawn = theirs(
        PROMPT,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE_SCALE,
        latents=torch.from_numpy(ours.initial_latents(SEED)),
        height=128,
        width=128,
        output_type="np",
    ).images[0]
    likeness = peak_signal_noise_ratio(picture, (drawn * 255).round().astype(np.uint8))
    assert likeness > 40


def test_openvino_genai_draws_the_same_picture(folder: Path, ours: Pipeline, picture: Any) -> None:
    genai = pytest.importorskip("openvino_genai")
    latents = ours.initial_latents(SEED)

    class Given(genai.Generator):  # type: ignore[misc]  # the package has no types
        def next(self) -> float:
            raise AssertionError("only whole tensors are drawn")

        def randn_tensor(self, shape: Any) -> ov.Tensor:
            assert tuple(shape) == latents.shape
            return ov.Tensor(latents.copy())

    theirs = genai.Text2ImagePipeline(folder, "CPU", INFERENCE_PRECISION_HINT="f32")
    drawn = theirs.generate(
        PROMPT,
        width=128,
        height=128,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE_SCALE,
        generator=Given(),
    ).data[0]
    assert peak_signal_noise_ratio(picture, np.asarray(drawn)) > 40
