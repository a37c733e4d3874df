"""What is to be drawn, and how."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import get_args

from PIL import Image

from sdcompress.runtime.arrays import Float32
from sdcompress.runtime.errors import BundleError, InputError
from sdcompress.runtime.manifest import FILE_NAME as MANIFEST
from sdcompress.runtime.manifest import read_manifest
from sdcompress.runtime.noise import KINDS
from sdcompress.runtime.schedulers import SCHEDULERS

DECODERS = ("vae", "tiny")


@dataclass(frozen=True)
class Settings:
    """How a picture is drawn. None stands for the model's own scheduler and size (pixels).

    `eta` is DDIM's share of fresh noise. `noise` "torch" draws the numbers that torch's CPU
    generator would. `prompt_weights` gives `(word:1.2)` its usual meaning, `long_prompts` encodes
    prompts of more than 75 tokens in pieces instead of cutting them.

    These save time and cost quality: the whole UNet is asked at every `cache_interval`-th call
    only, its layers outside the outermost `cache_depth` skip connections at the others (DeepCache,
    arXiv:2312.00858); guidance is applied from `guidance_begin` to `guidance_end`, shares of the
    calls (arXiv:2404.07724); self-attention over all latent cells reads every `attention_stride`-th
    row and column only (arXiv:2402.13573). `decoder` "tiny" makes the picture with the bundle's
    distilled decoder instead of the VAE's.
    """

    steps: int = 25
    guidance_scale: float = 7.5
    scheduler: str | None = None
    width: int | None = None
    height: int | None = None
    eta: float = 0.0
    noise: str = "numpy"
    prompt_weights: bool = False
    long_prompts: bool = False
    cache_interval: int = 1
    cache_depth: int = 1
    guidance_begin: float = 0.0
    guidance_end: float = 1.0
    attention_stride: int = 1
    decoder: str = "vae"

    def __post_init__(self) -> None:
        for entry in fields(self):
            # Settings also come from files, where anything may stand.
            value, allowed = getattr(self, entry.name), get_args(entry.type) or (entry.type,)
            if type(value) not in allowed and not (float in allowed and type(value) is int):
                wanted = " or ".join(kind.__name__ for kind in allowed)
                raise InputError(f"{entry.name} is {value!r}; it must be of type {wanted}.")
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
        if not 0.0 <= self.eta <= 1.0:
            raise InputError(f"eta is {self.eta}; it must be between 0 and 1.")
        if self.noise not in KINDS:
            raise InputError(f"noise is {self.noise!r}; it must be one of {', '.join(KINDS)}.")
        if self.decoder not in DECODERS:
            raise InputError(
                f"decoder is {self.decoder!r}; it must be one of {', '.join(DECODERS)}."
            )
        self._require_shortcuts()

    def _require_shortcuts(self) -> None:
        for name in ("cache_interval", "cache_depth", "attention_stride"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if not 0.0 <= self.guidance_begin < self.guidance_end <= 1.0:
            raise InputError(
                f"guidance_begin is {self.guidance_begin} and guidance_end {self.guidance_end}; "
                "both are shares of the calls, from 0 to 1, and the end comes later."
            )

    @property
    def guided(self) -> bool:
        """Whether the negative prompt takes part; at a guidance scale of 1 it would cancel out."""
        return self.guidance_scale != 1.0

    @property
    def partly_guided(self) -> bool:
        """Whether some calls of the UNet are guided and others are not."""
        return self.guided and (self.guidance_begin, self.guidance_end) != (0.0, 1.0)

    def guided_calls(self, calls: int) -> range:
        """Which of so many calls of the UNet are guided; one at least."""
        if not self.guided:
            return range(0)
        begin = min(round(self.guidance_begin * calls), calls - 1)
        return range(begin, max(round(self.guidance_end * calls), begin + 1))


@dataclass(frozen=True)
class Job:
    """One picture to draw.

    With `image` the picture begins from it, `strength` of the steps before its end; with `mask`
    too, only what is white in the mask is drawn anew. `latents`, standard normal float32
    [4, height/8, width/8], take the place of the first that the seed would give.
    """

    prompt: str
    negative_prompt: str = ""
    seed: int = 0
    image: Image.Image | None = None
    mask: Image.Image | None = None
    strength: float = 0.8
    latents: Float32 | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.strength <= 1.0:
            raise InputError(f"strength is {self.strength}; it must be above 0 and at most 1.")
        if self.mask is not None and self.image is None:
            raise InputError("A mask needs an image to be redrawn.")


def bundled_settings(folder: Path, *, fast: bool = True) -> Settings:
    """Read the settings a bundle was evaluated with; the usual ones for a folder without manifest.

    Without `fast` those of its baseline. Raises BundleError when the manifest's recipe holds none
    that can be used.
    """
    if not (folder / MANIFEST).exists():
        return Settings()
    recipe = read_manifest(folder).recipe
    known = {field.name for field in fields(Settings)}
    settings = Settings()
    # The second says what the bundle does otherwise than the baseline.
    for section in ("sampling", "runtime") if fast else ("sampling",):
        where = f"{folder / MANIFEST}: recipe.{section}"
        values = recipe.get(section, {} if section == "runtime" else None)
        if not isinstance(values, dict) or not set(values) <= known:
            raise BundleError(f"{where} must hold some of {', '.join(sorted(known))} and no more.")
        given = {name: value for name, value in values.items() if value is not None}
        try:
            settings = replace(settings, **given)
        except (TypeError, InputError) as fault:
            raise BundleError(f"{where} cannot be used: {fault}") from None
    return settings
