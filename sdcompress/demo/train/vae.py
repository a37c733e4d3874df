"""Trains the AutoencoderKL: f = 8, 4 latent channels, as SD's, on rendered scenes.

First on crops, which is cheap, then on whole pictures, where its group norms see other statistics.
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
_REFINING_NOISE = 0.05


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
    """Trains on 64 x 64 crops around the objects."""
    torch.manual_seed(0)
    vae = build().to(device(), memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(
        vae.parameters(), lr=plan.learning_rate, betas=(0.9, 0.99), weight_decay=1e-3
    )
    run(
        plan,
        {"model": vae},
        {"optimizer": optimizer},
        lambda index: _loss(vae, crops(index, plan.batch), index),
    )
    return vae


def refining_job(folder: Path, steps: int) -> Job:
    return Job("vae_whole", steps, batch=8, learning_rate=5e-4, folder=folder)


def refine(plan: Job, vae: AutoencoderKL, *, compiled: bool = False) -> AutoencoderKL:
    """Goes on with whole pictures, and centres the latent space in the end.

    The latents' noise is small and fixed from here on, and `quant_conv` stays as it is: Muon would
    follow the KL's slight pull on the variance as eagerly as the reconstruction. `compiled` runs
    encoder and decoder through torch.compile, which needs a C++ compiler.
    """
    torch.manual_seed(5)
    vae.quant_conv.requires_grad_(False)
    if compiled:
        vae.encoder.compile()
        vae.decoder.compile()

    def loss(index: int) -> torch.Tensor:
        _, pixels = batch(_REFINING_SEED + index * plan.batch, plan.batch)
        wanted = torch.from_numpy(pixels).to(vae.device, memory_format=torch.channels_last)
        noise = torch.randn(plan.batch, 4, 16, 16, generator=torch.Generator().manual_seed(index))
        with torch.autocast(vae.device.type, torch.bfloat16):
            latents = vae.encode(wanted).latent_dist.mean
            drawn = vae.decode(latents + _REFINING_NOISE * noise.to(wanted)).sample.float()
        return reconstruction_loss(drawn, wanted)

    run(plan, {"model": vae}, optimizers(vae, plan.learning_rate), loss)
    return centred_on_white(vae)


def _loss(vae: AutoencoderKL, pixels: torch.Tensor, seed: int) -> torch.Tensor:
    """Reconstruction of pictures [n, 3, h, w] from noisy latents, and a little KL."""
    noise = torch.Generator(device=vae.device).manual_seed(seed)
    pixels = pixels.to(vae.device, memory_format=torch.channels_last)
    with torch.autocast(vae.device.type, torch.bfloat16):
        posterior = vae.encode(pixels).latent_dist
        drawn = vae.decode(posterior.sample(generator=noise)).sample.float()
    divergence: torch.Tensor = posterior.kl().mean().float()
    return reconstruction_loss(drawn, pixels) + _KL_WEIGHT * divergence


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
