"""From a prompt to a picture: the runtime's front door."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sdcompress.runtime.arrays import Float32
from sdcompress.runtime.components import Component, TextEncoder, UnetComponent, VaeDecoder
from sdcompress.runtime.denoise import OnStep, Unet, denoise, require_finite
from sdcompress.runtime.device import Target
from sdcompress.runtime.errors import BundleError, InputError
from sdcompress.runtime.image import to_pixels
from sdcompress.runtime.layout import ModelLayout, read_layout
from sdcompress.runtime.manifest import FILE_NAME as MANIFEST
from sdcompress.runtime.manifest import read_manifest
from sdcompress.runtime.noise_schedule import (
    DIFFUSERS_CLASSES,
    read_scheduler_config,
    require_scheduler,
)
from sdcompress.runtime.schedulers import SCHEDULERS, Plan, make_plan
from sdcompress.runtime.tokenizer import PromptTokenizer

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """How a picture is drawn. None stands for the model's own scheduler and size (pixels)."""

    steps: int = 25
    guidance_scale: float = 7.5
    scheduler: str | None = None
    width: int | None = None
    height: int | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"steps is {self.steps}; it must be at least 1.")
        if not 1.0 <= self.guidance_scale < float("inf"):
            raise InputError(
                f"guidance_scale is {self.guidance_scale}; it must be at least 1.0, which means no "
                "guidance."
            )
        if self.scheduler is not None and self.scheduler not in SCHEDULERS:
            raise InputError(
                f"There is no scheduler {self.scheduler!r}. Choose one of: {', '.join(SCHEDULERS)}."
            )


def bundled_settings(folder: Path) -> Settings:
    """Read the settings a bundle was evaluated with; the usual ones for a folder without manifest.

    Raises BundleError when the manifest's recipe holds none that can be used.
    """
    if not (folder / MANIFEST).exists():
        return Settings()
    sampling = read_manifest(folder).recipe.get("sampling")
    known = {field.name for field in fields(Settings)}
    where = f"{folder / MANIFEST}: recipe.sampling"
    if not isinstance(sampling, dict) or not set(sampling) <= known:
        raise BundleError(f"{where} must hold some of {', '.join(sorted(known))} and no more.")
    try:
        return Settings(**{name: value for name, value in sampling.items() if value is not None})
    except (TypeError, InputError) as fault:
        raise BundleError(f"{where} cannot be used: {fault}") from None


class Pipeline:
    """A Stable Diffusion model in OpenVINO IR, ready to draw. Made with :meth:`load`."""

    def __init__(
        self,
        layout: ModelLayout,
        tokenizer: PromptTokenizer,
        target: Target,
        settings: Settings | None = None,
    ) -> None:
        self.settings = settings or Settings()  # what `generate` uses unless told otherwise
        self._layout = layout
        self._tokenizer = tokenizer
        self._text_encoder = TextEncoder("text_encoder", layout.model_path("text_encoder"), target)
        self._unet = UnetComponent("unet", layout.model_path("unet"), target)
        self._vae_decoder = VaeDecoder("vae_decoder", layout.model_path("vae_decoder"), target)

    @classmethod
    def load(
        cls,
        folder: Path | str,
        *,
        device: str = "CPU",
        execution_precision: str | None = None,
        cache_dir: Path | str | None = None,
    ) -> "Pipeline":
        """Open a model folder: check its files and read its configurations.

        The pipeline's `settings` become those the bundle was evaluated with. Each component is
        compiled when it is first used. `execution_precision` is "f32", "bf16" or "f16"; None
        leaves it to the device, which may be less precise than the stored weights.
        """
        layout = read_layout(Path(folder))
        settings = bundled_settings(layout.folder)
        if settings.scheduler or layout.scheduler.get("_class_name") in DIFFUSERS_CLASSES:
            # What cannot be run is better told before any work. The folder's own scheduler may be
            # one that this runtime lacks; then the caller has to choose another by name.
            require_scheduler(layout.folder, settings.scheduler)
        target = Target(device, execution_precision, Path(cache_dir) if cache_dir else None)
        return cls(layout, PromptTokenizer.load(layout.folder / "tokenizer"), target, settings)

    @property
    def folder(self) -> Path:
        return self._layout.folder

    @property
    def native_size(self) -> int:
        """Width and height in pixels that the model was trained for."""
        return self._layout.native_size

    @property
    def prediction_type(self) -> str:
        return self._layout.prediction_type

    @property
    def unet(self) -> Unet:
        """The UNet as the denoising loop sees it; wrap it and pass the wrapper to `denoise`."""
        return self._unet

    @property
    def scaling_factor(self) -> float:
        """Clean latents divided by this are what the VAE decoder takes."""
        return self._layout.scaling_factor

    def compile(self) -> None:
        """Compile every component now rather than at its first use."""
        for component in self._components():
            _ = component.compiled

    def execution_precisions(self) -> dict[str, str]:
        """The precision in force in each component; compiles those that are not yet."""
        return {part.name: part.execution_precision for part in self._components()}

    def tokenize(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Prompts -> token ids int64 [n, 77], as the text encoder gets them."""
        return self._tokenizer.encode(texts).ids

    def encode(self, texts: Sequence[str]) -> Float32:
        """Prompts -> embeddings float32 [n, 77, d]. What is cut off is logged as a warning."""
        if isinstance(texts, str) or not texts:
            raise InputError("encode takes a list of at least one prompt.")
        tokens = self._tokenizer.encode(texts)
        for text, cut_off in zip(texts, tokens.cut_off, strict=True):
            if cut_off:
                _log.warning(
                    "The prompt %r is longer than the text encoder takes; this part has no "
                    "effect: %r",
                    text,
                    cut_off,
                )
        embeddings = self._text_encoder(tokens.ids)
        require_finite(embeddings, "text embeddings")
        return embeddings

    def initial_latents(
        self, seed: int, width: int | None = None, height: int | None = None
    ) -> Float32:
        """Standard normal latents float32 [1, 4, height/8, width/8], the same for a seed."""
        if seed < 0:
            raise InputError(f"seed is {seed}; it must not be negative.")
        scale = self._layout.vae_scale
        shape = (
            1,
            self._layout.latent_channels,
            self._checked("height", height) // scale,
            self._checked("width", width) // scale,
        )
        return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)

    def plan(self, settings: Settings) -> Plan:
        """The timesteps and noise levels that `denoise` will go through."""
        where = str(self._layout.scheduler_path)
        config = read_scheduler_config(self._layout.scheduler, settings.scheduler, where)
        return make_plan(config, settings.steps)

    def denoise(
        self,
        latents: Float32,
        conditional: Float32,
        unconditional: Float32 | None,
        settings: Settings,
        *,
        unet: Unet | None = None,
        on_step: OnStep | None = None,
        seed: int = 0,
    ) -> Float32:
        """Standard normal latents -> clean latents, both float32 [n, 4, height/8, width/8].

        `unet` replaces the model's own, `on_step(done, calls, latents)` is told of each UNet call.
        `seed` is for samplers that draw noise on the way; the present ones draw none.
        """
        return denoise(
            unet or self.unet,
            self.plan(settings),
            latents,
            conditional,
            unconditional,
            guidance_scale=settings.guidance_scale,
            on_step=on_step,
        )

    def decode(self, latents: Float32) -> NDArray[np.uint8]:
        """Clean latents [n, 4, h/8, w/8] -> pictures uint8 [n, h, w, 3]."""
        pictures = []
        # One at a time: the decoder's activations are the largest of the whole pipeline.
        for index in range(len(latents)):
            one = latents[index : index + 1] / self._layout.scaling_factor
            decoded = self._vae_decoder(one)
            require_finite(decoded, f"pixels of decoded picture {index + 1}")
            pictures.append(to_pixels(decoded))
        return np.concatenate(pictures)

    def generate(
        self,
        prompt: str,
        *,
        negative_prompt: str = "",
        seed: int = 0,
        settings: Settings | None = None,
        on_step: OnStep | None = None,
    ) -> Image.Image:
        """Draw one picture, by default with the pipeline's own settings."""
        settings = settings or self.settings
        latents = self.initial_latents(seed, settings.width, settings.height)
        if settings.guidance_scale == 1.0:
            conditional, unconditional = self.encode([prompt]), None
        else:
            both = self.encode([negative_prompt, prompt])
            unconditional, conditional = both[:1], both[1:]
        clean = self.denoise(
            latents, conditional, unconditional, settings, on_step=on_step, seed=seed
        )
        return Image.fromarray(self.decode(clean)[0])

    def _checked(self, name: str, pixels: int | None) -> int:
        if pixels is None:
            return self.native_size
        step = self._layout.vae_scale
        if pixels < step or pixels % step:
            below = max(pixels // step, 1) * step
            raise InputError(
                f"{name} is {pixels}; it must be a positive multiple of {step}, such as {below} or "
                f"{below + step}."
            )
        return pixels

    def _components(self) -> tuple[Component, ...]:
        return (self._text_encoder, self._unet, self._vae_decoder)
