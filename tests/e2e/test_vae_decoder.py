"""A VAE decoder in 8 bits: calibrated on recorded latents, and gated by its own likeness."""

from pathlib import Path

import pytest
from conftest import quick_recipe

from sdcompress.assessment import evaluate
from sdcompress.errors import QualityGateFailed
from sdcompress.ir import IR_NAME
from sdcompress.precision import layers_of
from sdcompress.recipe import load_recipe
from sdcompress.shipped import shipped_folder
from sdcompress.verdict import Run
from sdcompress.workflow import quantize

pytestmark = pytest.mark.filterwarnings("ignore")  # raised inside the libraries


@pytest.fixture(scope="module")
def run(bundle: Path, build_folder: Path) -> Run:
    del bundle  # converted and calibrated on the way
    shipped = load_recipe(shipped_folder("recipes") / "sd21_base_fast.yaml")
    decoder = shipped.compress.vae_decoder.model_dump_json()
    recipe = quick_recipe(
        "unet_int8",
        f"compress.vae_decoder={decoder}",
        "budgets={decoder_ssim_min: 0.9}",
        "evaluate.prompts=2",
        "evaluate.yardstick_prompts=0",
    )
    return quantize(recipe, build_folder / "vae_int8")


def test_its_convolutions_are_w8a8_but_for_both_ends(run: Run) -> None:
    found = {one.name: one.precision for one in layers_of(run.output / "vae_decoder" / IR_NAME)}
    ends = [name for name in found if any(end in name for end in ("conv_in", "conv_out", "quant"))]
    assert len(ends) == 3
    for name, precision in found.items():
        assert precision == ("fp16" if name in ends else "int8"), name


def test_it_is_held_against_the_baselines_on_the_same_latents(run: Run) -> None:
    (likeness,) = run.evaluation.quality.sqnr.decoder_ssim
    assert 0.9 < likeness < 0.9999
    assert "The VAE decoders alone" in (run.report / "report.md").read_text(encoding="utf-8")


def test_a_decoder_that_is_too_unlike_is_refused(run: Run) -> None:
    stricter = ("budgets={decoder_ssim_min: 0.9999}",)
    with pytest.raises(QualityGateFailed, match=r"decoder_ssim_min .* at least 0.9999"):
        evaluate(run.output, run.output.with_name("vae_int8_strict"), overrides=stricter)
