"""The denoising loop. The network is an argument, so that callers can wrap it.

Recording inputs, measuring errors and caching are all callables put around the `unet` given here.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sdcompress.runtime.arrays import Array, Float32
from sdcompress.runtime.errors import CancelledError, InputError, NotFiniteError
from sdcompress.runtime.schedulers import Plan, walk
from sdcompress.runtime.schedulers.estimate import FreshNoise, split

# (sample float32 [b, 4, h/8, w/8], timestep, encoder_hidden_states float32 [b, 77, d])
#   -> float32 [b, 4, h/8, w/8]
Unet = Callable[[Float32, float, Float32], Float32]

# Latents after a call, and the index of the next -> the latents to go on with.
Blend = Callable[[Float32, int], Float32]


@dataclass(frozen=True)
class Step:
    """A call of the network that was just used."""

    done: int
    calls: int
    timestep: float
    latents: Float32  # [n, 4, h/8, w/8], in the scheduler's scale
    clean: Float32  # the same shape: what the network takes the clean latents to be


# Told of every call; returning True stops the run.
OnStep = Callable[[Step], bool | None]


def denoise(
    unet: Unet,
    plan: Plan,
    latents: Float32,
    conditional: Float32,
    unconditional: Float32 | None,
    *,
    guidance_scale: float,
    fresh_noise: FreshNoise,
    guided_calls: range | None = None,
    blend: Blend | None = None,
    on_step: OnStep | None = None,
) -> Float32:
    """Turn latents [n, 4, h/8, w/8] in the plan's scale into clean ones.

    `conditional` and `unconditional` are [n or 1, 77, d]. With guidance the network is asked for
    both branches in one batch, the unconditional one first; at a scale of 1.0 the second branch
    would cancel out and is not computed. `guided_calls` are those with guidance, by default all.
    Raises CancelledError when `on_step` returns True.
    """
    calls, count = len(plan), len(latents)
    text = _per_image(conditional, count, "conditional")
    both = text
    if guidance_scale != 1.0:
        if unconditional is None:
            raise InputError("A guidance scale other than 1.0 needs the unconditional embeddings.")
        both = np.concatenate([_per_image(unconditional, count, "unconditional"), text])
    guided = range(calls) if guided_calls is None else guided_calls
    numbers = itertools.count()
    asked: list[tuple[Float32, Float32]] = []

    def predict(x: Float32, timestep: float) -> Float32:
        texts = both if next(numbers) in guided else text
        output = unet(np.concatenate([x] * (len(texts) // count)), timestep, texts)
        require_finite(output, f"UNet's predictions at timestep {timestep:g}")
        if len(output) > count:
            base, conditioned = output[:count], output[count:]
            output = base + (conditioned - base) * guidance_scale
        asked[:] = [(x, output)]
        return output

    steps = walk(plan, latents, predict, fresh_noise)
    latents = next(steps)
    for done, row in enumerate(plan.rows(), start=1):
        if blend is not None:
            latents = blend(latents, done)
        if on_step is not None:
            clean, _ = split(plan.config.prediction_type, asked[0][0], row.asked, asked[0][1])
            if on_step(Step(done, calls, row.t, latents, clean)):
                raise CancelledError(f"Stopped after {done} of {calls} calls of the UNet.")
        if done < calls:
            latents = steps.send(latents)
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
