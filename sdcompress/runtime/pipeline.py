"""From a prompt to a picture: the runtime's front door."""

from collections.abc import Sequence
from dataclasses import fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from PIL import Image

from sdcompress.runtime.arrays import Float32
from sdcompress.runtime.begin import Start, begin_with_image, begin_with_noise, join
from sdcompress.runtime.components import Component, Shapes, TextEncoder, VaeDecoder, VaeEncoder
from sdcompress.runtime.content import Content
from sdcompress.runtime.denoise import OnStep, Unet, denoise, require_finite
from sdcompress.runtime.device import CACHE_BYTES, Target, precision_by_default
from sdcompress.runtime.economy import SIDE_BY_SIDE, Economy
from sdcompress.runtime.embeddings import EmbeddingCache
from sdcompress.runtime.errors import BundleError, InputError
from sdcompress.runtime.image import to_pixels
from sdcompress.runtime.layout import ModelLayout, read_layout
from sdcompress.runtime.noise import Noise, make_noise
from sdcompress.runtime.prompting import PromptEncoder, Texts
from sdcompress.runtime.schedulers import (
    DIFFUSERS_CLASSES,
    Plan,
    make_plan,
    read_scheduler_config,
    require_scheduler,
)
from sdcompress.runtime.settings import DECODERS, Job, Settings, bundled_settings
from sdcompress.runtime.tiling import decode_tiled
from sdcompress.runtime.tokenizer import PromptTokenizer
from sdcompress.runtime.trust import require_intact
from sdcompress.runtime.unet import Asking, Unets


class Pipeline:
    """A Stable Diffusion model in OpenVINO IR, ready to draw. Made with :meth:`load`."""

    def __init__(
        self,
        layout: ModelLayout,
        tokenizer: PromptTokenizer,
        target: Target,
        settings: Settings | None = None,
        economy: Economy | None = None,
    ) -> None:
        self.settings = settings or Settings()  # what is used unless told otherwise
        self.economy = economy or Economy()  # may be changed between pictures
        self._layout = layout
        self._target = target
        self._text_encoder = TextEncoder("text_encoder", layout.model_path("text_encoder"), target)
        self.prompts = PromptEncoder(tokenizer, self._text_encoder)
        self._unets = Unets(layout.model_path("unet"), target)
        # Decoders by what `Settings.decoder` calls them.
        self._decoders = {
            kind: VaeDecoder(name, layout.model_path(name), target)
            for kind, name in zip(DECODERS, ("vae_decoder", "tiny_decoder"), strict=True)
        }
        self._vae_encoder = VaeEncoder("vae_encoder", layout.model_path("vae_encoder"), target)

    @classmethod
    def load(
        cls,
        folder: Path | str,
        *,
        device: str = "CPU",
        execution_precision: str | None = None,
        cache_dir: Path | str | None = None,
        cache_bytes: int = CACHE_BYTES,
        threads: int | None = None,
        streams: int = 1,
        static: bool = True,
        profiling: bool = False,
        economy: Economy | None = None,
        verify: str = "once",
    ) -> "Pipeline":
        """Open a model folder: check its files and read its configurations.

        The pipeline's `settings` become those the bundle was evaluated with. Each component is
        compiled when it is first used. `execution_precision` is "f32", "bf16" or "f16"; None
        leaves it to the device, which may be less precise than the stored weights. `cache_dir`,
        `cache_bytes`, `threads`, `streams`, `static` and `profiling` are those of
        :class:`~sdcompress.runtime.device.Target`; `economy` says what is done to save memory.

        Sizes of the files are always compared with the manifest; `verify` says when hashes are:
        "once" for each copy of a bundle on this machine, "always" or "never".
        """
        layout = read_layout(Path(folder))
        require_intact(layout.folder, verify)
        settings = bundled_settings(layout.folder)
        if settings.scheduler or layout.scheduler.get("_class_name") in DIFFUSERS_CLASSES:
            # What cannot be run is better told before any work. The folder's own scheduler may be
            # one that this runtime lacks; then the caller has to choose another by name.
            require_scheduler(layout.folder, settings.scheduler)
        cache = Path(cache_dir) if cache_dir else None
        target = Target(
            device,
            execution_precision,
            cache,
            cache_bytes,
            threads,
            streams,
            static,
            profiling,
        )
        tokenizer = PromptTokenizer.load(layout.folder / "tokenizer")
        return cls(layout, tokenizer, target, settings, economy)

    @property
    def folder(self) -> Path:
        return self._layout.folder

    @property
    def device(self) -> str:
        """OpenVINO's name of the device."""
        return self._target.device

    @property
    def native_size(self) -> int:
        """Width and height in pixels that the model was trained for."""
        return self._layout.native_size

    @property
    def prediction_type(self) -> str:
        return self._layout.prediction_type

    @property
    def unet(self) -> Unet:
        """The whole UNet as the denoising loop asks it; wrap it and pass that to `denoise`."""
        return self._unets.asked(Settings(), self.economy, 1)

    @property
    def any_batch(self) -> bool:
        """Whether several pictures can be drawn at once."""
        return self._unets.declared.any_batch

    def other_branches(self, settings: Settings) -> tuple[str, ...]:
        """The ways to ask for the branches of guidance that may be quicker than the usual one."""
        return self._unets.other_branches(settings)

    def network(self, settings: Settings, pictures: int = 1) -> Unet:
        """What `denoise` asks with these settings, which may leave out some of the UNet's work.

        For one denoising of so many pictures: it may remember earlier calls.
        """
        return self._unets.asked(settings, self.economy, pictures)

    @property
    def has_tiny_decoder(self) -> bool:
        """Whether pictures can be decoded with `Settings.decoder` "tiny"."""
        return self._layout.has_tiny_decoder

    @property
    def scaling_factor(self) -> float:
        """Clean latents divided by this are what the VAE decoder takes."""
        return self._layout.scaling_factor

    def compile(self, settings: Settings | None = None, batch: int = 1) -> None:
        """Compile what text-to-image with these settings needs now, not when it is first used."""
        settings = settings or self.settings
        text = self.encode([""], settings)
        for part, shapes, at_once in self._shapes(settings, batch, self.economy, text.shape[1:]):
            part.compile_for(shapes, at_once)

    def compile_unet(self, settings: Settings, batch: int = 1) -> None:
        """Compile now what denoising from noise with prompts of the usual length needs.

        Nothing where the UNet's file leaves open how wide embeddings are.
        """
        text = self._text_shape()
        if text is None:
            return
        for part, shapes, at_once in self._shapes(settings, batch, self.economy, text):
            if part is not self.decoder(settings):
                part.compile_for(shapes, at_once)

    def contents(
        self, settings: Settings, batch: int, economy: Economy
    ) -> dict[str, Content] | None:
        """What the parts will put into memory for text-to-image, by their names.

        None where one of them cannot take the shapes, or leaves open how wide embeddings are.
        """
        text = self._text_shape()
        if text is None:
            return None
        ids: Shapes = {"input_ids": (1, text[0])}
        parts = ((self._text_encoder, ids, 1),
                 *self._shapes(settings, batch, economy, text))  # fmt: skip
        found: dict[str, Content] = {}
        for part, shapes, at_once in parts:
            content = part.content(shapes)
            if content is None:
                return None
            content = content.times(at_once)
            found[part.name] = found[part.name] + content if part.name in found else content
        return found

    def _text_shape(self) -> tuple[int, int] | None:
        """Tokens and width of a usual prompt's embeddings; None where the UNet leaves it open."""
        width = self._unets.declared.text_width
        return None if width is None else (self.prompts.tokenize([""]).shape[1], width)

    def prompt_cache(self) -> EmbeddingCache | None:
        """Where this user's encoded prompts are kept; None for a folder without a manifest."""
        core = self._target.core
        engine = [
            *(version(name) for name in ("sdcompress", "openvino", "tokenizers")),
            self._target.device,
            precision_by_default(self._target),
            *(core.get_property(one, "FULL_DEVICE_NAME") for one in core.available_devices),
        ]
        return EmbeddingCache.of(self.folder, engine)

    def release(self, *names: str) -> None:
        """Give back the memory of the components of these names, until they are used again."""
        for part in (self._text_encoder, *self._decoders.values(), self._vae_encoder):
            if part.name in names:
                part.release()
        if "unet" in names:
            self._unets.release()

    def execution_precisions(self, *names: str, settings: Settings | None = None) -> dict[str, str]:
        """The precision in force in the components of these names, by default in all.

        Compiles those that are not yet.
        """
        parts = [part for part in self._components(settings) if not names or part.name in names]
        return {part.name: part.execution_precision for part in parts}

    def compiled_models(self, settings: Settings | None = None) -> dict[str, ov.CompiledModel]:
        """Each component as the device runs it; compiles those that are not yet."""
        return {part.name: part.compiled for part in self._components(settings)}

    def encode(self, texts: Sequence[str], settings: Settings | None = None) -> Float32:
        """Prompts -> embeddings float32 [n, 77, d], as :meth:`PromptEncoder.encode` has them."""
        return self.prompts.encode(texts, settings or self.settings)

    def initial_latents(
        self, seed: int, width: int | None = None, height: int | None = None
    ) -> Float32:
        """Standard normal latents float32 [1, 4, height/8, width/8], the same for a seed."""
        return make_noise("numpy", seed).normal(self._layout.latent_shape(width, height))

    def plan(self, settings: Settings, strength: float = 1.0) -> Plan:
        """The timesteps and noise levels that `denoise` will go through."""
        where = str(self._layout.scheduler_path)
        config = read_scheduler_config(self._layout.scheduler, settings.scheduler, where)
        return make_plan(config, settings.steps, strength=strength, eta=settings.eta)

    def begin(self, job: Job, settings: Settings | None = None) -> Start:
        """What the denoising of one picture starts with; pictures of a batch are joined later."""
        settings = settings or self.settings
        self.decoder(settings)  # a missing one is told before any work
        noise = make_noise(settings.noise, job.seed)
        if job.image is None:
            if self._layout.inpainting:
                raise InputError("This model is made for inpainting; give it an image and a mask.")
            plan = self.plan(settings)
            shape = self._layout.latent_shape(settings.width, settings.height)
            return begin_with_noise(plan, job, noise, shape)
        plan = self.plan(settings, job.strength)
        return begin_with_image(
            self._layout, plan, job, job.image, noise, settings, self._encode_pixels
        )

    def denoise(
        self,
        starts: Start | Sequence[Start],
        conditional: Float32,
        unconditional: Float32 | None,
        settings: Settings | None = None,
        *,
        unet: Unet | None = None,
        on_step: OnStep | None = None,
    ) -> Float32:
        """From where pictures begin to clean latents float32 [n, 4, height/8, width/8].

        `unet` replaces the model's own; `on_step` is told of each call and may stop the run.
        """
        settings = settings or self.settings
        start = starts if isinstance(starts, Start) else join(starts)
        return denoise(
            start.widened(unet or self.network(settings, len(start.latents))),
            start.plan,
            start.latents,
            conditional,
            unconditional,
            guidance_scale=settings.guidance_scale,
            guided_calls=settings.guided_calls(len(start.plan)),
            fresh_noise=start.fresh_noise,
            blend=start.blend(),
            on_step=on_step,
        )

    def decoder(self, settings: Settings) -> VaeDecoder:
        """The part that makes pictures. Raises BundleError for a tiny one that is not there."""
        if settings.decoder == "tiny" and not self.has_tiny_decoder:
            raise BundleError(
                f"{self.folder} has no tiny_decoder. Build it with one (convert.tiny_decoder in "
                "the recipe), or draw with the VAE's decoder."
            )
        return self._decoders[settings.decoder]

    def decode(self, latents: Float32, settings: Settings | None = None) -> NDArray[np.uint8]:
        """Clean latents [n, 4, h/8, w/8] -> pictures uint8 [n, h, w, 3]."""
        settings = settings or self.settings
        decoder = self.decoder(settings)
        if settings.decoder == "vae":  # the tiny one takes them as the UNet has them
            latents = latents / self._layout.scaling_factor
        pictures = []
        # One at a time: the decoder's activations are the largest of the whole pipeline.
        for index in range(len(latents)):
            one = latents[index : index + 1]
            tile, scale = self.economy.vae_tile, self._layout.vae_scale
            decoded = decoder(one) if tile is None else decode_tiled(decoder, one, tile, scale)
            require_finite(decoded, f"pixels of decoded picture {index + 1}")
            pictures.append(to_pixels(decoded))
        return np.concatenate(pictures)

    def denoise_jobs(
        self,
        jobs: Sequence[Job],
        settings: Settings | None = None,
        *,
        texts: Texts | None = None,
        on_step: OnStep | None = None,
    ) -> Float32:
        """Denoise a batch from its prompts, or from their embeddings: all but decoding."""
        settings = settings or self.settings
        starts = [self.begin(job, settings) for job in jobs]
        conditional, unconditional = texts or self.prompts.encode_jobs(jobs, settings)
        return self.denoise(starts, conditional, unconditional, settings, on_step=on_step)

    def draw(
        self,
        jobs: Sequence[Job],
        settings: Settings | None = None,
        *,
        on_step: OnStep | None = None,
    ) -> list[Image.Image]:
        """Draw a batch of pictures, by default with the pipeline's own settings."""
        latents = self.denoise_jobs(jobs, settings, on_step=on_step)
        return [Image.fromarray(picture) for picture in self.decode(latents, settings)]

    def preview(self, latents: Float32) -> Image.Image:
        """The first picture that latents show on the way, by the quickest decoder there is."""
        quick = replace(self.settings, decoder="tiny" if self.has_tiny_decoder else "vae")
        return Image.fromarray(self.decode(latents[:1], quick)[0])

    def generate(
        self,
        prompt: str,
        *,
        settings: Settings | None = None,
        on_step: OnStep | None = None,
        **job: Any,
    ) -> Image.Image:
        """Draw one picture; further arguments are those of :class:`Job`."""
        known = {field.name for field in fields(Job)}
        if not set(job) <= known:
            raise TypeError(f"generate has no argument {', '.join(sorted(set(job) - known))}")
        return self.draw([Job(prompt, **job)], settings, on_step=on_step)[0]

    def _encode_pixels(self, pixels: Float32, noise: Noise) -> Float32:
        if not self._layout.can_encode:
            raise BundleError(
                f"{self.folder} has no vae_encoder, which pictures to begin with need. Build it "
                "again with all components."
            )
        return self._vae_encoder(pixels, noise) * np.float32(self._layout.scaling_factor)

    def _shapes(
        self, settings: Settings, batch: int, economy: Economy, text: tuple[int, ...]
    ) -> tuple[tuple[Component, Shapes, int], ...]:
        """What UNet and decoder are given, and how often at once; `text` is that of embeddings."""
        rows = 2 * batch if settings.guided else batch
        branches = self._unets.branches(settings, economy)
        parts = Asking(branches, batch).parts(rows)
        rows //= parts
        at_once = parts if branches == SIDE_BY_SIDE else 1
        shape = self._layout.latent_shape(settings.width, settings.height)
        sample = (rows, self._layout.unet_channels, *shape[2:])
        cells = [side if economy.vae_tile is None else min(side, economy.vae_tile)
                 for side in shape[2:]]  # fmt: skip
        asked = {"sample": sample, "encoder_hidden_states": (rows, *text)}
        return (
            *((part, part.shapes(asked), at_once) for part in self._unets.parts(settings)),
            (self.decoder(settings), {"latent_sample": (*shape[:2], *cells)}, 1),
        )

    def _components(self, settings: Settings | None) -> tuple[Component, ...]:
        decoder = self.decoder(settings or self.settings)
        return (self._text_encoder, self._unets.in_use[0], decoder)
