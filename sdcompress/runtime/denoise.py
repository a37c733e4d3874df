"""The denoising loop. The network is an argument, so that callers can wrap it.

Recording inputs, measuring errors and caching are all callables put around the `unet` given here.
"""

from collections.abc import Callable

import numpy as np

from sdcompress.runtime.arrays import Array, Float32
from sdcompress.runtime.errors import InputError, NotFiniteError
from sdcompress.runtime.schedulers import Plan, sample

# (sample float32 [b, 4, h/8, w/8], timestep, encoder_hidden_states float32 [b, 77, d])
#   -> float32 [b, 4, h/8, w/8]
Unet = Callable[[Float32, float, Float32], Float32]

# (calls done, calls in all, latents float32 [n, 4, h/8, w/8])
OnStep = Callable[[int, int, Float32], None]


def denoise(
    unet: Unet,
    plan: Plan,
    latents: Float32,
    conditional: Float32,
    unconditional: Float32 | None,
    *,
    guidance_scale: float,
    on_step: OnStep | None = None,
) -> Float32:
    """Turn standard normal latents [n, 4, h/8, w/8] into clean ones.

    `conditional` and `unconditional` are [n or 1, 77, d]. With guidance both branches go through
    the network in one batch, the unconditional one first; at a scale of 1.0 the second branch
    would cancel out and is not computed.
    """
    count = len(latents)
    text = _per_image(conditional, count, "conditional")
    guided = guidance_scale != 1.0
    if guided:
        if unconditional is None:
            raise InputError("A guidance scale other than 1.0 needs the unconditional embeddings.")
        text = np.concatenate([_per_image(unconditional, count, "unconditional"), text])

    def predict(x: Float32, timestep: float) -> Float32:
        output = unet(np.concatenate([x, x]) if guided else x, timestep, text)
        require_finite(output, f"UNet's predictions at timestep {timestep:g}")
        if not guided:
            return output
        base, conditioned = output[:count], output[count:]
        return base + (conditioned - base) * guidance_scale

    calls = len(plan.timesteps)
    for done, current in enumerate(sample(plan, latents, predict), start=1):
        latents = current
        if on_step is not None:
            on_step(done, calls, current)
    require_finite(latents, "latents after the last step")
    return latents


def require_finite(values: Array, what: str) -> None:
    """Stop at the first NaN or infinity, and say where it appeared."""
    if not np.isfinite(values).all():
        bad = int(values.size - np.count_nonzero(np.isfinite(values)))
        raise NotFiniteError(
            f"The {what} contain {bad} values of {values.size} that are NaN or infinite. "
            "Try execution precision f32; if that helps, the model overflows in 16 bit, and if "
            "not, its compression damaged it."
        )


def _per_image(embeddings: Float32, count: int, name: str) -> Float32:
    if len(embeddings) not in (1, count):
        raise InputError(
            f"{name} holds embeddings for {len(embeddings)} prompts, but there are {count} images."
        )
    return np.repeat(embeddings, count, axis=0) if len(embeddings) != count else embeddings
