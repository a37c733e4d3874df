"""The shipped weights: sizes, SD 2.1's conventions, and that each part does its work."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from sdcompress.demo import CLIP_DIR, MODEL_DIR, TINY_DECODER_DIR, measure  # noqa: E402
from sdcompress.quiet import quiet_libraries  # noqa: E402

MEBIBYTE = 2**20


def folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def config(*parts: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(MODEL_DIR.joinpath(*parts).read_text("utf-8"))
    return loaded


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return measure.load_pipeline()


@pytest.fixture(scope="module")
def scorer() -> measure.Scorer:
    return measure.Scorer()


def test_the_folders_are_small_enough_to_ship() -> None:
    assert 0 < folder_bytes(MODEL_DIR) <= 20_000_000
    assert 0 < folder_bytes(CLIP_DIR) <= 6_000_000
    assert 0 < folder_bytes(TINY_DECODER_DIR) <= MEBIBYTE


def test_weights_are_half_precision_safetensors_only() -> None:
    from safetensors import safe_open

    for folder in (MODEL_DIR, CLIP_DIR, TINY_DECODER_DIR):
        files = list(folder.rglob("*.safetensors"))
        assert files
        assert not [file for file in folder.rglob("*") if file.suffix in {".bin", ".ckpt", ".pt"}]
        for file in files:
            with safe_open(file, "pt") as tensors:
                kinds = {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118 - not a dict
            assert kinds <= {"F16", "I64"}, file


def test_configurations_follow_sd_21() -> None:
    index = config("model_index.json")
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert index["vae"] == ["diffusers", "AutoencoderKL"]
    assert index["text_encoder"] == ["transformers", "CLIPTextModel"]
    assert index["safety_checker"] == [None, None]
    assert index["feature_extractor"] == [None, None]
    assert index["requires_safety_checker"] is False
    unet = config("unet", "config.json")
    assert unet["down_block_types"] == ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
    assert unet["up_block_types"] == ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3
    assert unet["use_linear_projection"] is True
    vae = config("vae", "config.json")
    assert vae["latent_channels"] == 4
    assert len(vae["block_out_channels"]) == 4  # three halvings: f = 8
    assert unet["sample_size"] * 8 == 128
    scheduler = config("scheduler", "scheduler_config.json")
    wanted = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "steps_offset": 1,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "clip_sample": False,
    }
    assert {key: scheduler.get(key) for key in wanted} == wanted


def test_the_vae_scaling_factor_gives_latents_a_root_mean_square_of_one(pipeline: Any) -> None:
    pictures = np.stack([picture for _, picture in measure.held_out_renders(40)])
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.inference_mode():
        latents = pipeline.vae.encode(pixels).latent_dist.mode()
    assert float(
        latents.square().mean().sqrt()
    ) * pipeline.vae.config.scaling_factor == pytest.approx(1, abs=0.1)


def test_it_draws_held_out_prompts(pipeline: Any) -> None:
    prompts = measure.held_out_prompts(16)[::2]
    assert measure.accuracy(measure.draw(pipeline, prompts), prompts) >= 0.85


def test_every_shipped_scheduler_class_draws_the_same_kind_of_picture(pipeline: Any) -> None:
    with quiet_libraries():
        own = diffusers.StableDiffusionPipeline.from_pretrained(
            MODEL_DIR, torch_dtype=torch.float32
        )
    own.set_progress_bar_config(disable=True)
    assert type(own.scheduler).__name__ in {"PNDMScheduler", "DDIMScheduler"}
    generator = torch.Generator().manual_seed(3)
    picture = own("a large red circle", num_inference_steps=12, generator=generator).images[0]
    assert picture.size == (128, 128)
    assert np.asarray(picture).std() > 10


def test_clip_picks_the_right_caption_of_16(scorer: measure.Scorer) -> None:
    assert measure.clip_choice(scorer, measure.held_out_renders(60)) >= 0.95


def test_clip_scores_the_right_picture_higher(scorer: measure.Scorer) -> None:
    rng = random.Random(1)
    renders = measure.held_out_renders(40)
    pictures = np.stack([picture for _, picture in renders])
    right = [measure.caption(scene, rng) for scene, _ in renders]
    wrong = [measure.wrong_captions(scene, 1, rng)[0] for scene, _ in renders]
    assert scorer.score(pictures, right) > scorer.score(pictures, wrong) + 1


def test_the_tiny_decoder_is_close_to_the_vae_decoder() -> None:
    accepted, vae_psnr_db, tiny_psnr_db = measure.measure_decoders(
        MODEL_DIR, TINY_DECODER_DIR, measure.held_out_renders(24)
    )
    assert accepted >= 0.8
    assert vae_psnr_db >= 20
    assert tiny_psnr_db >= 22


def test_the_card_quotes_the_measured_figures() -> None:
    figures = json.loads(measure.FIGURES.read_text("utf-8"))
    card = (MODEL_DIR.parent / "MODEL_CARD.md").read_text("utf-8")
    for row in figures["drawings"]:
        quoted = (
            f"| {row['weight_noise']:.0%} | {row['accuracy_one_object']:.1%} "
            f"| {row['accuracy_two_objects']:.1%} | {row['clip_score']:.2f} |"
        ).replace("%", " %")
        assert quoted in card
    for name in ("checker_accepts_renders", "checker_accepts_wrong_captions", "clip_picks_of_16",
                 "vae_renders_accepted"):  # fmt: skip
        assert f"| {figures[name]:.1%}".replace("%", " %") in card, name
    for name in ("vae_psnr_db", "tiny_decoder_psnr_db"):
        assert f"| {figures[name]:.1f} dB" in card, name
