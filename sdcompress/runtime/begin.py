"""Where a picture begins: from noise, from another picture, or from one with a part masked.

The random numbers of a picture are drawn in the order in which diffusers' pipelines draw them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from sdcompress.runtime.arrays import Float32
from sdcompress.runtime.denoise import Blend, Unet
from sdcompress.runtime.errors import InputError
from sdcompress.runtime.image import binary_mask, to_unit_range
from sdcompress.runtime.layout import ModelLayout
from sdcompress.runtime.noise import Noise
from sdcompress.runtime.schedulers import Plan
from sdcompress.runtime.settings import Job, Settings

_MOST_NATIVE_SIZES = 2  # a picture to begin with may be this much larger than the model's own size

# Pictures float32 [1, 3, h, w] in -1 to 1, and their noise -> scaled latents [1, 4, h/8, w/8].
Encode = Callable[[Float32, Noise], Float32]


@dataclass(frozen=True)
class Start:
    """One or several pictures about to be denoised, all by the same plan."""

    plan: Plan
    latents: Float32  # [n, 4, h/8, w/8], in the plan's scale
    noises: tuple[Noise, ...]  # n streams, one a picture
    kept: Float32 | None = None  # [n, 4, h/8, w/8]: clean latents of what stays unpainted
    kept_noise: Float32 | None = None  # the noise that goes with them
    mask: Float32 | None = None  # [n, 1, h/8, w/8], 1 where the picture is drawn anew
    extra: Float32 | None = None  # [n, 5, h/8, w/8]: further channels of an inpainting UNet

    def fresh_noise(self) -> Float32:
        """Noise of the shape of the latents, each picture's from its own stream."""
        shape = (1, *self.latents.shape[1:])
        return np.concatenate([noise.normal(shape) for noise in self.noises])

    def blend(self) -> Blend | None:
        """Puts back what the mask keeps, as noisy as the next call expects."""
        if self.kept is None or self.kept_noise is None or self.mask is None:
            return None
        kept, noise, mask, plan = self.kept, self.kept_noise, self.mask, self.plan

        def blend(latents: Float32, call: int) -> Float32:
            outside = plan.noised(kept, noise, call) if call < len(plan) else kept
            return (1 - mask) * outside + mask * latents

        return blend

    def widened(self, unet: Unet) -> Unet:
        """The UNet, given the further channels that it takes beside the latents."""
        extra = self.extra
        if extra is None:
            return unet

        def with_extra(sample: Float32, timestep: float, text: Float32) -> Float32:
            branches = np.concatenate([extra] * (len(sample) // len(extra)))
            return unet(np.concatenate([sample, branches], axis=1), timestep, text)

        return with_extra


def join(starts: Sequence[Start]) -> Start:
    """One start for several pictures of the same plan and shape. Raises InputError otherwise."""
    first = starts[0]
    for other in starts[1:]:
        if other.latents.shape != first.latents.shape:
            raise InputError("All pictures of a batch must have the same size.")
        if len(other.plan) != len(first.plan) or (other.mask is None) != (first.mask is None):
            raise InputError(
                "All pictures of a batch must begin alike: from noise, or from pictures with the "
                "same strength, with or without masks."
            )

    def column(name: str) -> Float32 | None:
        values = [getattr(start, name) for start in starts]
        return None if values[0] is None else np.concatenate(values)

    return Start(
        first.plan,
        np.concatenate([start.latents for start in starts]),
        tuple(noise for start in starts for noise in start.noises),
        *(column(name) for name in ("kept", "kept_noise", "mask", "extra")),
    )


def begin_with_noise(plan: Plan, job: Job, noise: Noise, shape: tuple[int, ...]) -> Start:
    """Pure noise of `shape` [1, 4, h/8, w/8], or the job's own latents."""
    return Start(plan, _first_noise(job, noise, shape) * plan.initial_scale, (noise,))


def begin_with_image(
    layout: ModelLayout,
    plan: Plan,
    job: Job,
    image: Image.Image,
    noise: Noise,
    settings: Settings,
    encode: Encode,
) -> Start:
    """The job's image, fitted to the size that is drawn, as a whole or with its mask."""
    if layout.inpainting and job.mask is None:
        raise InputError("This model is made for inpainting; give it a mask as well.")
    width, height = _fitting_size(layout, image, settings)
    shape = layout.latent_shape(width, height)
    pixels = to_unit_range(image, width, height)
    if job.mask is None:
        return begin_with_picture(plan, job, noise, shape, encode, pixels)
    mask = binary_mask(job.mask, width, height)
    blended = not layout.inpainting
    return begin_with_mask(plan, job, noise, shape, encode, pixels, mask, blended=blended)


def _fitting_size(layout: ModelLayout, image: Image.Image, settings: Settings) -> tuple[int, int]:
    step = layout.vae_scale
    sized = settings.width is not None and settings.height is not None
    if not sized and not (
        step <= min(image.size) and max(image.size) <= _MOST_NATIVE_SIZES * layout.native_size
    ):
        raise InputError(
            f"The image is {image.width} x {image.height}; this model draws "
            f"{layout.native_size} x {layout.native_size} best. Say to which width and height it "
            "is to be resized."
        )
    # A picture of any size is fitted to whole latent cells; a size asked for is not bent.
    width = image.width // step * step if settings.width is None else settings.width
    height = image.height // step * step if settings.height is None else settings.height
    return layout.side("width", width), layout.side("height", height)


def begin_with_picture(
    plan: Plan, job: Job, noise: Noise, shape: tuple[int, ...], encode: Encode, pixels: Float32
) -> Start:
    """A picture [1, 3, h, w] in -1 to 1, as noisy as the plan's first call expects."""
    clean = encode(pixels, noise)
    start = _first_noise(job, noise, shape)
    return Start(plan, plan.noised(clean, start, 0), (noise,))


def begin_with_mask(
    plan: Plan,
    job: Job,
    noise: Noise,
    shape: tuple[int, ...],
    encode: Encode,
    pixels: Float32,
    mask: Float32,
    *,
    blended: bool,
) -> Start:
    """A picture [1, 3, h, w] in -1 to 1 of which only the mask [1, 1, h, w] is to be drawn anew.

    `blended` keeps the rest by mixing latents after each call, for a plain UNet; otherwise the
    UNet takes the mask and the masked picture as further channels and knows what to do.
    """
    scale = pixels.shape[2] // shape[2]
    clean = encode(pixels, noise) if blended or plan.skipped else None
    start = _first_noise(job, noise, shape)
    latents = start * plan.initial_scale
    if clean is not None and plan.skipped:
        latents = plan.noised(clean, start, 0)
    seen = encode(pixels * (mask < 0.5), noise)  # drawn in any case, to stay in step with diffusers
    small = mask[:, :, ::scale, ::scale]
    if blended:
        return Start(plan, latents, (noise,), kept=clean, kept_noise=start, mask=small)
    return Start(plan, latents, (noise,), extra=np.concatenate([small, seen], axis=1))


def _first_noise(job: Job, noise: Noise, shape: tuple[int, ...]) -> Float32:
    """The job's own latents, or the next numbers of its stream."""
    if job.latents is None:
        return noise.normal(shape)
    values = np.asarray(job.latents, dtype=np.float32)
    if values.shape not in (shape, shape[1:]):
        raise InputError(
            f"The initial latents have the shape {list(values.shape)}; this size of picture needs "
            f"{list(shape[1:])}."
        )
    return values.reshape(shape)
