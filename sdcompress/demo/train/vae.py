"""Trains the AutoencoderKL: f = 8, 4 latent channels, as SD's, on rendered scenes."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch.nn import functional

from sdcompress.demo.train.checkpoint import Job, device, run
from sdcompress.demo.train.data import batch

_KL_WEIGHT = 1e-5
_CROP = 64


def build() -> AutoencoderKL:
    return AutoencoderKL(
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


def job(folder: Path, steps: int) -> Job:
    return Job("vae", steps, batch=32, learning_rate=2e-3, folder=folder)


def train(plan: Job) -> AutoencoderKL:
    """Trains on random 64 x 64 crops with L1 on pixels and on their gradients, and a little KL."""
    torch.manual_seed(0)
    place = device()
    vae = build().to(place, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), betas=(0.9, 0.99), weight_decay=1e-3)

    def step(index: int) -> float:
        noise = torch.Generator(device=place).manual_seed(index)
        pixels = crops(index, plan.batch).to(place, memory_format=torch.channels_last)
        with torch.autocast(place.type, torch.bfloat16):
            posterior = vae.encode(pixels).latent_dist
            drawn = vae.decode(posterior.sample(generator=noise)).sample.float()
        loss = reconstruction_loss(drawn, pixels) + _KL_WEIGHT * posterior.kl().mean().float()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss)

    run(plan, {"model": vae}, optimizer, step)
    return vae


def crops(index: int, count: int) -> torch.Tensor:
    """Returns `count` crops float32 [n, 3, 64, 64] near the objects, in -1..1."""
    _, whole = batch(index * count, count)
    pixels = torch.from_numpy(whole)
    corners = torch.randint(0, 9, (count, 2), generator=torch.Generator().manual_seed(index)) * 8
    parts = [
        pixels[i, :, int(y) : int(y) + _CROP, int(x) : int(x) + _CROP]
        for i, (y, x) in enumerate(corners)
    ]
    return torch.stack(parts)


def reconstruction_loss(drawn: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """L1 on pixels plus L1 on horizontal and vertical differences, which keeps edges crisp."""
    loss = functional.l1_loss(drawn, pixels)
    for axis in (-1, -2):
        loss = loss + functional.l1_loss(drawn.diff(dim=axis), pixels.diff(dim=axis))
    return loss
