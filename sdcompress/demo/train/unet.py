"""Trains the UNet behind the frozen text encoder: epsilon prediction, some captions dropped.

Loss weights follow Min-SNR-5 (arXiv:2303.09556); the weights kept are an exponential average.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import CLIPTextModel, CLIPTokenizer

from sdcompress.demo.train.checkpoint import Job, device, run
from sdcompress.demo.train.data import batch
from sdcompress.demo.train.muon import optimizers
from sdcompress.demo.train.tokenizer import MAX_TOKENS

NOISE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}
_CAPTION_DROP = 0.1
_OFFSET = 0.1  # noise on each channel's mean, so that the caption and not the noise sets it
_MAX_SNR = 5.0
_EXAMPLES = 30_000
_FIRST_SEED = 10_000_000


@dataclass(frozen=True)
class Latents:
    """The training set behind the VAE: float16 means [n, 4, 16, 16], token ids [n, 77]."""

    means: np.ndarray[Any, Any]
    token_ids: np.ndarray[Any, Any]
    scaling_factor: float


def build() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        block_out_channels=(64, 96, 128, 144),
        layers_per_block=1,
        attention_head_dim=(2, 3, 4, 4),
        cross_attention_dim=128,
        use_linear_projection=True,
        norm_num_groups=16,
    )


def job(folder: Path, steps: int) -> Job:
    return Job("unet", steps, batch=64, learning_rate=1e-3, folder=folder)


def encode_training_set(
    vae: AutoencoderKL, tokenizer: CLIPTokenizer, folder: Path, count: int = _EXAMPLES
) -> Latents:
    """Runs the VAE encoder over the training set once and keeps the result on disk."""
    file = folder / "latents.npz"
    if not file.exists():
        _encode(vae, tokenizer, file, count)
    with np.load(file) as stored:
        means = stored["means"]
        scale = 1.0 / float(np.sqrt(np.square(means[:4000].astype(np.float32)).mean()))
        return Latents(means, stored["token_ids"], scale)


def _encode(vae: AutoencoderKL, tokenizer: CLIPTokenizer, file: Path, count: int) -> None:
    place = device()
    vae = vae.to(place, memory_format=torch.channels_last).eval()
    means, texts = [], []
    for first in range(0, count, 50):
        examples, pixels = batch(_FIRST_SEED + first, 50)
        images = torch.from_numpy(pixels).to(place, memory_format=torch.channels_last)
        with torch.no_grad(), torch.autocast(place.type, torch.bfloat16):
            posterior = vae.encode(images).latent_dist
        means.append(posterior.mean.half().cpu().numpy())
        texts += [one.caption for one in examples]
    ids = tokenizer(texts, padding="max_length", max_length=MAX_TOKENS, return_tensors="np")
    partial = file.with_suffix(".partial.npz")
    np.savez(
        partial,
        means=np.concatenate(means),
        token_ids=ids.input_ids.astype(np.int32),
    )
    partial.replace(file)


def train(
    plan: Job,
    latents: Latents,
    text: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    *,
    compiled: bool = False,
) -> UNet2DConditionModel:
    """Trains on the text encoder's states as they are, and returns the averaged weights.

    `compiled` runs the network through torch.compile, which needs a C++ compiler.
    """
    torch.manual_seed(2)
    place = device()
    unet = build().to(place, memory_format=torch.channels_last)
    unet.set_attn_processor(AttnProcessor())  # learns 1.3 x as fast on CPU as the fused attention
    forward = torch.compile(unet) if compiled else unet
    rule = get_ema_multi_avg_fn(0.999)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    average = AveragedModel(unet, multi_avg_fn=rule)
    noise_schedule = DDPMScheduler(**NOISE)
    empty = tokenizer("", padding="max_length", max_length=MAX_TOKENS, return_tensors="np")
    all_states = _text_states(text.to(place), latents.token_ids)
    no_caption = _text_states(text, empty.input_ids)[0]

    def loss(index: int) -> torch.Tensor:
        random = torch.Generator().manual_seed(index)
        chosen = torch.randint(0, len(latents.means), (plan.batch,), generator=random)
        states = all_states[chosen]
        states[torch.rand(plan.batch, generator=random) < _CAPTION_DROP] = no_caption
        means = torch.from_numpy(latents.means[chosen.numpy()].astype(np.float32))
        clean = (means * latents.scaling_factor).to(place, memory_format=torch.channels_last)
        noise = torch.randn(clean.shape, generator=random)
        noise = noise + _OFFSET * torch.randn(*clean.shape[:2], 1, 1, generator=random)
        noise = noise.to(clean)
        times = torch.randint(0, 1000, (plan.batch,), generator=random).to(place)
        noisy = noise_schedule.add_noise(clean, noise, times)
        with torch.autocast(place.type, torch.bfloat16):
            predicted = forward(noisy, times, states.float().to(place)).sample.float()
        errors: torch.Tensor = (predicted - noise).square().mean(dim=(1, 2, 3))
        return (errors * _weights(noise_schedule, times)).mean()

    run(
        plan,
        {"model": unet, "average": average},
        optimizers(unet, plan.learning_rate),
        loss,
        after=lambda: average.update_parameters(unet),
    )
    averaged = cast("UNet2DConditionModel", average.module)
    averaged.set_default_attn_processor()
    return averaged


@torch.no_grad()
def _text_states(text: CLIPTextModel, token_ids: np.ndarray[Any, Any]) -> torch.Tensor:
    """Returns the last hidden states [n, 77, 128] as float16, on the CPU; they are large."""
    place = next(text.parameters()).device
    states = [
        text(input_ids=torch.from_numpy(part.astype(np.int64)).to(place)).last_hidden_state.half()
        for part in np.array_split(token_ids, -(-len(token_ids) // 100))
    ]
    return torch.cat([part.cpu() for part in states])


def _weights(noise_schedule: DDPMScheduler, times: torch.Tensor) -> torch.Tensor:
    kept = noise_schedule.alphas_cumprod.to(times.device)[times]
    snr = kept / (1 - kept)
    weights: torch.Tensor = snr.clamp(max=_MAX_SNR) / snr
    return weights
