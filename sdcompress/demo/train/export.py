"""Writes the trained parts as the folders that ship, in half precision and safetensors."""

import shutil
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTextModel,
    CLIPTokenizer,
)

from sdcompress.demo.train.tokenizer import build as build_tokenizer
from sdcompress.demo.train.unet import NOISE

_SCHEDULER = {
    **NOISE,
    "skip_prk_steps": True,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "clip_sample": False,  # for the schedulers made from this configuration, as in SD's folder
}


def export_pipeline(
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    scaling_factor: float,
    folder: Path,
) -> None:
    """Writes a StableDiffusionPipeline folder with SD 2.1-base's conventions."""
    vae.register_to_config(scaling_factor=scaling_factor)
    scheduler = PNDMScheduler.from_config(_SCHEDULER)
    pipeline = StableDiffusionPipeline(
        vae=vae,
        unet=unet,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    shutil.rmtree(folder, ignore_errors=True)
    pipeline.to(dtype=torch.float16).save_pretrained(folder, safe_serialization=True)
    # transformers 5 leaves out vocab.json and merges.txt, and writes down the last call's padding.
    shutil.rmtree(folder / "tokenizer")
    build_tokenizer(folder / "tokenizer")


def export_clip(model: CLIPModel, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Writes a CLIPModel folder with its processor."""
    side = {"height": 128, "width": 128}
    images = CLIPImageProcessorPil(size=side, crop_size=side, do_center_crop=False)
    shutil.rmtree(folder, ignore_errors=True)
    model.half().save_pretrained(folder, safe_serialization=True)
    CLIPProcessor(images, tokenizer).save_pretrained(folder)


def export_tiny(model: AutoencoderTiny, folder: Path) -> None:
    """Writes an AutoencoderTiny folder."""
    shutil.rmtree(folder, ignore_errors=True)
    model.half().save_pretrained(folder, safe_serialization=True)
