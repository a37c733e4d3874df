"""A bundle opens unchanged in optimum-intel and openvino-genai, and they draw the same picture."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from skimage.metrics import peak_signal_noise_ratio

from sdcompress.interchange import write_peer_scheduler
from sdcompress.runtime import Job, Pipeline, Settings

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.filterwarnings("ignore")  # raised inside the libraries

PROMPT = "a large red circle"
STEPS = 8
GUIDANCE_SCALE = 5.0
SEED = 3

# Last bits differ between runtimes. W8A8 rounds some of them to other steps, and PNDM, which
# extrapolates, lets that grow; so it is compared on the FP32 IR.
CASES = [("bundle", "ddim"), ("baseline", "pndm"), ("baseline", "euler")]


@pytest.fixture
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    """A folder, its scheduler exchanged for one that all three have."""
    name, scheduler = request.param
    folder = Path(shutil.copytree(request.getfixturevalue(name), tmp_path / "folder"))
    write_peer_scheduler(folder, scheduler)
    return folder, scheduler


def draw(case: tuple[Path, str]) -> tuple[Any, Any]:
    """The initial latents and the picture that this runtime draws from them."""
    folder, scheduler = case
    pipeline = Pipeline.load(folder, execution_precision="f32")
    settings = Settings(steps=STEPS, guidance_scale=GUIDANCE_SCALE, scheduler=scheduler)
    picture = pipeline.generate(PROMPT, seed=SEED, settings=settings)
    return pipeline.initial_latents(SEED), np.asarray(picture)


def least_likeness(case: tuple[Path, str], latents: Any, picture: Any) -> float:
    """40 dB, or hardly less than what this runtime keeps when last bits of its latents differ.

    On some processors rounding to 8 bits makes that less than 40 dB.
    """
    folder, scheduler = case
    if not (folder / "manifest.json").exists():  # nothing is rounded to 8 bits
        return 40.0
    pipeline = Pipeline.load(folder, execution_precision="f32")
    settings = Settings(steps=STEPS, guidance_scale=GUIDANCE_SCALE, scheduler=scheduler)
    own = []
    for seed in range(4):
        change = np.random.default_rng(seed).standard_normal(latents.shape, np.float32)
        job = Job(PROMPT, latents=latents * (1 + np.float32(1e-6) * change))
        own.append(peak_signal_noise_ratio(picture, np.asarray(pipeline.draw([job], settings)[0])))
    return max(25.0, min(40.0, min(own) - 3))


@pytest.mark.parametrize("case", CASES, indirect=True, ids="-".join)
def test_optimum_intel_draws_the_same_picture(case: tuple[Path, str]) -> None:
    from optimum.intel import OVStableDiffusionPipeline

    latents, picture = draw(case)
    theirs = OVStableDiffusionPipeline.from_pretrained(
        case[0], ov_config={"INFERENCE_PRECISION_HINT": "f32", "CACHE_DIR": ""}
    )
    drawn = theirs(
        PROMPT,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE_SCALE,
        latents=torch.from_numpy(latents),
        height=128,
        width=128,
        output_type="np",
    ).images[0]
    likeness = peak_signal_noise_ratio(picture, (drawn * 255).round().astype(np.uint8))
    assert likeness > least_likeness(case, latents, picture)


@pytest.mark.parametrize("case", CASES, indirect=True, ids="-".join)
def test_openvino_genai_draws_the_same_picture(case: tuple[Path, str]) -> None:
    genai = pytest.importorskip("openvino_genai")
    latents, picture = draw(case)

    class Given(genai.Generator):  # type: ignore[misc]  # the package has no types
        def next(self) -> float:
            raise AssertionError("only whole tensors are drawn")

        def randn_tensor(self, shape: Any) -> ov.Tensor:
            assert tuple(shape) == latents.shape
            return ov.Tensor(latents.copy())

    theirs = genai.Text2ImagePipeline(case[0], "CPU", INFERENCE_PRECISION_HINT="f32")
    drawn = theirs.generate(
        PROMPT,
        width=128,
        height=128,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE_SCALE,
        generator=Given(),
    ).data[0]
    likeness = peak_signal_noise_ratio(picture, np.asarray(drawn))
    assert likeness > least_likeness(case, latents, picture)
