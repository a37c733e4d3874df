"""Trains the AutoencoderKL: f = 8, 4 latent channels, as SD's, on rendered scenes.

First all of it on crops, then, once the latents are fixed, the decoder alone on whole pictures, as
was done for SD's own: its group norms see other statistics there than on crops.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional

from sdcompress.demo.train.checkpoint import Job, device, run
from sdcompress.demo.train.data import Array, batch
from sdcompress.demo.train.muon import optimizers

_KL_WEIGHT = 1e-5
_CROP = 64
_REFINING_SEED = 40_000_000


def build() -> AutoencoderKL:
    """Returns the untrained model; its latents start nearly noise-free, which learns far sooner."""
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=128,
    )
    with torch.no_grad():
        vae.quant_conv.bias[4:] = -6.0  # log variance
    return vae


def job(folder: Path, steps: int) -> Job:
    return Job("vae", steps, batch=16, learning_rate=2e-3, folder=folder)


def train(plan: Job) -> AutoencoderKL:
    """Trains on 64 x 64 crops around the objects, with a little KL."""
    torch.manual_seed(0)
    place = device()
    vae = build().to(place, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(
        vae.parameters(), lr=plan.learning_rate, betas=(0.9, 0.99), weight_decay=1e-3
    )

    def loss(index: int) -> torch.Tensor:
        noise = torch.Generator(device=place).manual_seed(index)
        pixels = crops(index, plan.batch).to(place, memory_format=torch.channels_last)
        with torch.autocast(place.type, torch.bfloat16):
            posterior = vae.encode(pixels).latent_dist
            drawn = vae.decode(posterior.sample(generator=noise)).sample.float()
        divergence: torch.Tensor = posterior.kl().mean().float()
        return reconstruction_loss(drawn, pixels) + _KL_WEIGHT * divergence

    run(plan, {"model": vae}, {"optimizer": optimizer}, loss)
    return centred_on_white(vae)


@torch.no_grad()
def centred_on_white(vae: AutoencoderKL) -> AutoencoderKL:
    """Shifts the latent space so that white is zero; pictures stay what they were.

    SD's noise schedule leaves a trace of the mean at its last step, so sampling from pure noise
    pulls towards pictures whose latents average to zero. Here that is the usual background. The
    shift goes into the biases of the two 1 x 1 convolutions around the latents.
    """
    white = torch.ones(1, 3, 128, 128, device=vae.device)
    shift = vae.encode(white).latent_dist.mean[0, :, 4:-4, 4:-4].mean(dim=(1, 2))
    vae.quant_conv.bias[:4] -= shift
    vae.post_quant_conv.bias += vae.post_quant_conv.weight[:, :, 0, 0] @ shift
    return vae


def refining_job(folder: Path, steps: int) -> Job:
    return Job("decoder", steps, batch=8, learning_rate=1e-3, folder=folder)


def refine(plan: Job, vae: AutoencoderKL, *, compiled: bool = False) -> None:
    """Trains the decoder in place, on whole pictures; the encoder stays as it is.

    `compiled` runs the decoder through torch.compile, which needs a C++ compiler.
    """
    torch.manual_seed(5)
    place = device()
    vae = vae.to(place, memory_format=torch.channels_last).eval()
    decoder = torch.nn.Sequential(vae.post_quant_conv, vae.decoder)
    forward = torch.compile(decoder) if compiled else decoder

    def loss(index: int) -> torch.Tensor:
        _, pixels = batch(_REFINING_SEED + index * plan.batch, plan.batch)
        wanted = torch.from_numpy(pixels).to(place, memory_format=torch.channels_last)
        with torch.autocast(place.type, torch.bfloat16):
            with torch.no_grad():
                latents = vae.encode(wanted).latent_dist.mean
            drawn = forward(latents).float()
        return reconstruction_loss(drawn, wanted)

    run(plan, {"model": decoder}, optimizers(decoder, plan.learning_rate), loss)


def crops(index: int, count: int) -> torch.Tensor:
    """Returns `count` crops float32 [n, 3, 64, 64] that show part of an object, in -1..1."""
    _, whole = batch(index * count, count)
    random = np.random.default_rng(index)
    return torch.from_numpy(np.stack([_crop(picture, random) for picture in whole]))


def _crop(picture: Array, random: np.random.Generator) -> Array:
    """Cuts around a random pixel that differs from the corner, which is background."""
    rows, columns = np.nonzero(np.abs(picture - picture[:, :1, :1]).max(axis=0) > 0.1)
    chosen = random.integers(len(rows))
    shift = random.integers(-_CROP // 2, _CROP // 2, 2)
    limit = picture.shape[-1] - _CROP
    top = int(np.clip(rows[chosen] + shift[0] - _CROP // 2, 0, limit)) // 8 * 8
    left = int(np.clip(columns[chosen] + shift[1] - _CROP // 2, 0, limit)) // 8 * 8
    return picture[:, top : top + _CROP, left : left + _CROP]


def reconstruction_loss(drawn: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """L2 and L1 on pixels, and L1 on horizontal and vertical differences for crisp edges."""
    loss = functional.l1_loss(drawn, pixels) + 4 * functional.mse_loss(drawn, pixels)
    for axis in (-1, -2):
        loss = loss + functional.l1_loss(drawn.diff(dim=axis), pixels.diff(dim=axis))
    return loss
