"""Distils the VAE decoder into a tiny one, in AutoencoderTiny's layout, for fast decoding.

Follows the idea of TAESD: a small convolutional network learns to reproduce the decoder's output
from scaled latents. Only the decoder is trained; the encoder is there because the layout has one.
"""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from sdcompress.demo.train.checkpoint import Job, device, run
from sdcompress.demo.train.muon import optimizers
from sdcompress.demo.train.unet import Latents
from sdcompress.demo.train.vae import reconstruction_loss


def build() -> AutoencoderTiny:
    return AutoencoderTiny(
        encoder_block_out_channels=(16, 16, 16, 16),
        decoder_block_out_channels=(32, 32, 32, 32),
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
        latent_channels=4,
        scaling_factor=1.0,
    )


def job(folder: Path, steps: int) -> Job:
    return Job("tiny", steps, batch=8, learning_rate=1e-3, folder=folder)


def train(plan: Job, latents: Latents, vae: AutoencoderKL) -> AutoencoderTiny:
    """Trains on latents against what the VAE decoder makes of them.

    AutoencoderTiny decodes into -1..1, after its own scaling from 0..1.
    """
    torch.manual_seed(3)
    place = device()
    vae = vae.to(place, memory_format=torch.channels_last).eval()
    tiny = build().to(place, memory_format=torch.channels_last)

    def loss(index: int) -> torch.Tensor:
        random = torch.Generator().manual_seed(index)
        chosen = torch.randint(0, len(latents.means), (plan.batch,), generator=random).numpy()
        means = torch.from_numpy(latents.means[chosen].astype("float32"))
        means = means.to(place, memory_format=torch.channels_last)
        with torch.no_grad(), torch.autocast(place.type, torch.bfloat16):
            wanted = vae.decode(means).sample.float().clamp(-1, 1)
        with torch.autocast(place.type, torch.bfloat16):
            drawn = tiny.decode(means * latents.scaling_factor).sample.float()
        return reconstruction_loss(drawn, wanted)

    run(plan, {"model": tiny}, optimizers(tiny.decoder, plan.learning_rate), loss)
    return tiny
