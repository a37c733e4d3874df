"""The recipe: everything a run depends on, typed and validated. Defaults live here, nowhere else.

A recipe is a YAML file whose keys equal the field names below. `load_recipe` finds every fault
before any model is opened and reports them together, each with its file, line and key.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sdcompress.methods import Compress, Method
from sdcompress.recipe_yaml import (
    FaultyKeyError,
    Layers,
    Section,
    apply_overrides,
    read_layers,
    report_faults,
)
from sdcompress.search.section import Search

DEMO = "demo"

Scheduler = Literal[
    "ddim",
    "ddpm",
    "pndm",
    "lms",
    "euler",
    "euler_ancestral",
    "heun",
    "dpmsolver++",
    "sde-dpmsolver++",
    "dpmsolver++-singlestep",
    "unipc",
    "lcm",
]
PixelSize = Annotated[int, Field(ge=64, le=4096, multiple_of=8)]


class Lora(Section):
    """A LoRA file whose product is added to UNet and text encoder before conversion."""

    file: Annotated[str, Field(min_length=1)]
    scale: Annotated[float, Field(ge=-10.0, le=10.0)] = 1.0


class Convert(Section):
    """FP IR. An axis left at null stays dynamic; a number fixes it, which compiles tighter.

    `weights: stored` keeps the checkpoint's type in the file, which loses nothing; `fp32` writes
    32-bit weights whatever the checkpoint holds. Execution of the baseline is float32 either way.
    `split_skips` makes two convolutions of each that reads a skip connection beside what comes from
    below, `split_first_token` multiplies the text's first token apart; both are exact, and give
    parts of different ranges quantizers of their own.
    `tiny_decoder` is `demo`, a folder or a hub id of diffusers' AutoencoderTiny, to be converted as
    well: for previews, and for `runtime.decoder: tiny`.
    """

    weights: Literal["stored", "fp32"] = "stored"
    split_skips: bool = False
    split_first_token: bool = False
    tiny_decoder: Annotated[str, Field(min_length=1)] | None = None
    batch: Literal[1, 2] | None = None
    height: PixelSize | None = None
    width: PixelSize | None = None

    @model_validator(mode="after")
    def _size_is_whole(self) -> Self:
        if (self.height is None) != (self.width is None):
            raise ValueError("height and width are fixed together or not at all")
        return self


class Sampling(Section):
    """How pictures are drawn, in calibration and evaluation; from the bundle but for `runtime`."""

    scheduler: Scheduler = "dpmsolver++"
    steps: Annotated[int, Field(ge=2, le=1000)] = 25
    guidance_scale: Annotated[float, Field(ge=1.0, le=50.0)] = 7.5
    height: PixelSize | None = None
    width: PixelSize | None = None

    @property
    def branches(self) -> int:
        """How many guidance branches the UNet runs: without guidance only the prompt's."""
        return 2 if self.guidance_scale > 1.0 else 1

    @property
    def unet_calls(self) -> int:
        """How often a picture asks the UNet; some schedulers ask more than once for a step."""
        return {"heun": 2 * self.steps - 1, "pndm": self.steps + 1}.get(self.scheduler, self.steps)


class Runtime(Section):
    """How the candidate is drawn, where that is not as in `sampling`, for the sake of speed.

    The quality is measured with it, and the bundle draws so by default. The whole UNet is asked at
    every `cache_interval`-th call only, its layers outside the outermost `cache_depth` skip
    connections at the others (DeepCache, arXiv:2312.00858); guidance is applied from
    `guidance_begin` to `guidance_end`, shares of the calls (arXiv:2404.07724); self-attention over
    all latent cells reads every `attention_stride`-th row and column only (arXiv:2402.13573); the
    `decoder` is the VAE's or the tiny one. null is as in `sampling`.
    """

    scheduler: Scheduler | None = None
    steps: Annotated[int, Field(ge=2, le=1000)] | None = None
    cache_interval: Annotated[int, Field(ge=1)] = 1
    cache_depth: Annotated[int, Field(ge=1)] = 1
    guidance_begin: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    guidance_end: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    attention_stride: Annotated[int, Field(ge=1, le=8)] = 1
    decoder: Literal["vae", "tiny"] = "vae"

    @model_validator(mode="after")
    def _guidance_lasts(self) -> Self:
        if self.guidance_begin >= self.guidance_end:
            raise ValueError("guidance_begin comes before guidance_end")
        return self


class Calibrate(Section):
    """Which UNet inputs are recorded. `samples` counts UNet inputs, one guidance branch each.

    On the way to them the whole UNet is asked at every `cache_interval`-th call only, its outermost
    layers at the others (DeepCache, arXiv:2312.00858): inputs are recorded at all of them.
    `statistics` is the execution precision in which ranges are collected on them. f32 gives the
    ranges of the model itself, bf16 takes less time where the processor has it; auto takes bf16
    when a few inputs show that it moves no activation's range by more than 2 %, and else f32.
    """

    prompt_set: str = "sd"
    prompts: Annotated[int, Field(ge=1)] = 32
    samples: Annotated[int, Field(ge=2, multiple_of=2)] = 128
    cache_interval: Annotated[int, Field(ge=1)] = 1
    statistics: Literal["f32", "bf16", "auto"] = "f32"
    seed: Annotated[int, Field(ge=0)] = 0


class Evaluate(Section):
    """What is drawn and measured. `scorer: null` is the demo's CLIP for the demo, else ViT-L/14.

    `yardstick_prompts` is on how many of the prompts the harmless changes are drawn that every
    figure is held against: null is all, 0 none. A `sequential` evaluation looks after parts of the
    prompts and ends as soon as all budgets of pictures are decided. `fid_features` and `lpips`
    name OpenVINO IR or ONNX files; `scorers` are those that installed packages bring along.
    """

    prompt_set: str = "sd_evaluation"
    prompts: Annotated[int, Field(ge=2)] = 64
    seed: Annotated[int, Field(ge=0)] = 42
    negative_prompt: str = ""
    allow_overlap: bool = False
    sequential: bool = False
    yardstick_prompts: Annotated[int, Field(ge=0)] | None = None
    scorer: str | None = None
    scorers: list[str] = Field(default_factory=list)
    fid_features: str | None = None
    lpips: str | None = None
    sqnr_prompts: Annotated[int, Field(ge=1)] = 4
    timed_images: Annotated[int, Field(ge=1)] = 3
    least_memory: bool = False


PICTURE_BUDGETS = ("clip_score_drop", "psnr_min_db", "ssim_min", "clip_similarity_min")


class Budgets(Section):
    """The gate. Every budget set must hold, or there is no bundle.

    What is estimated from pictures (`clip_score_drop`, `psnr_min_db`, `ssim_min`,
    `clip_similarity_min`) holds when the whole 95 % interval keeps to the limit, is broken when the
    whole interval does not, and is undecided in between. The ratios are candidate / baseline; the
    speed-ups are baseline / candidate.
    """

    clip_score_drop: Annotated[float, Field(ge=0.0)] | None = None
    psnr_min_db: float | None = None
    ssim_min: Annotated[float, Field(ge=-1.0, le=1.0)] | None = None
    clip_similarity_min: Annotated[float, Field(ge=-1.0, le=1.0)] | None = None
    unet_sqnr_min_db: float | None = None
    decoder_ssim_min: Annotated[float, Field(ge=-1.0, le=1.0)] | None = None
    unet_bytes_ratio: Annotated[float, Field(gt=0.0)] | None = None
    disk_ratio: Annotated[float, Field(gt=0.0)] | None = None
    peak_memory_ratio: Annotated[float, Field(gt=0.0)] | None = None
    step_speedup_min: Annotated[float, Field(gt=0.0)] | None = None
    image_speedup_min: Annotated[float, Field(gt=0.0)] | None = None

    @property
    def of_pictures(self) -> dict[str, float]:
        """The limits of those budgets that are set and estimated from pictures."""
        limits = {name: getattr(self, name) for name in PICTURE_BUDGETS}
        return {name: limit for name, limit in limits.items() if limit is not None}

    @model_validator(mode="after")
    def _at_least_one(self) -> Self:
        if all(value is None for _, value in self):
            raise ValueError("set at least one budget: without one, nothing decides what may ship")
        return self


class Recipe(Section):
    """A whole recipe. See `recipes/` for files to copy and edit."""

    schema_version: Annotated[Literal[1], Field(alias="schema")]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)]
    description: str = ""
    model: Annotated[str, Field(min_length=1)] = DEMO
    revision: str | None = None
    variant: str | None = None
    config: str | None = None
    loras: list[Lora] = Field(default_factory=list)
    device: str = "CPU"
    execution_precision: Literal["f32", "bf16", "f16"] | None = None
    convert: Convert = Convert()
    sampling: Sampling = Sampling()
    calibrate: Calibrate = Calibrate()
    compress: Compress
    runtime: Runtime = Runtime()
    evaluate: Evaluate = Evaluate()
    budgets: Budgets
    search: Search = Search()

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        self._shapes_agree()
        self._prompts_agree()
        self._evaluation_agrees()
        return self

    def _shapes_agree(self) -> None:
        fixed = (self.convert.width, self.convert.height)
        drawn = (self.sampling.width, self.sampling.height)
        if fixed not in ((None, None), drawn):
            raise FaultyKeyError(
                "convert.width",
                f"convert fixes {fixed[0]} x {fixed[1]} but sampling draws "
                f"{drawn[0] or 'native'} x {drawn[1] or 'native'}: set both to the same size",
            )
        branches = self.sampling.branches
        interval = (self.runtime.guidance_begin, self.runtime.guidance_end)
        if self.convert.batch is not None and interval != (0.0, 1.0):
            raise FaultyKeyError(
                "convert.batch",
                "with guidance in an interval the UNet is asked for one and for both branches: set "
                "null, or leave runtime.guidance_begin and guidance_end out",
            )
        if self.runtime.decoder == "tiny" and self.convert.tiny_decoder is None:
            raise FaultyKeyError(
                "runtime.decoder",
                "there is no tiny decoder: set convert.tiny_decoder to one, or decoder to vae",
            )
        if self.convert.batch not in (None, branches):
            raise FaultyKeyError(
                "convert.batch",
                f"a guidance scale of {self.sampling.guidance_scale:g} runs the UNet on a batch of "
                f"{branches}: set {branches} or null",
            )

    def _prompts_agree(self) -> None:
        if not self.compress.needs_calibration:
            return
        calls = self.calibrate.samples // self.sampling.branches
        most = self.calibrate.prompts * self.sampling.unet_calls
        if calls > most:
            raise FaultyKeyError(
                "calibrate.samples",
                f"{self.calibrate.samples} UNet inputs are {calls} calls, but "
                f"{self.calibrate.prompts} prompts of {self.sampling.unet_calls} calls each "
                f"make only {most}: raise calibrate.prompts or lower samples",
            )
        shared = self.calibrate.prompt_set == self.evaluate.prompt_set
        if shared and not self.evaluate.allow_overlap:
            raise FaultyKeyError(
                "evaluate.prompt_set",
                f"calibrate uses the prompt set '{self.evaluate.prompt_set}' as well: a model "
                "judged on its calibration prompts looks better than it is",
            )

    def _evaluation_agrees(self) -> None:
        if self.evaluate.sequential and not self.budgets.of_pictures:
            raise FaultyKeyError(
                "evaluate.sequential",
                "a sequential evaluation ends when the budgets of pictures are decided, and there "
                f"is none: set {', '.join(PICTURE_BUDGETS)}",
            )
        if self.evaluate.yardstick_prompts == 1:
            raise FaultyKeyError(
                "evaluate.yardstick_prompts",
                "a yardstick needs two prompts at least: set 2 or more, or 0 for none",
            )

    def with_unet(self, method: Method) -> "Recipe":
        """The same recipe with another method for the UNet. Raises RecipeError where it cannot."""
        data = self.as_dict()
        data["compress"]["unet"] = method.model_dump(mode="json")
        return parse_recipe(Path(self.name), data)

    @property
    def schedulers(self) -> set[str]:
        """All that are drawn with."""
        return {self.sampling.scheduler, self.runtime.scheduler or self.sampling.scheduler}

    @property
    def baseline_settings(self) -> dict[str, Any]:
        """How the baseline is drawn, as keywords of the runtime's `Settings`."""
        return self.sampling.model_dump()

    @property
    def candidate_settings(self) -> dict[str, Any]:
        """How the candidate is drawn, as keywords of the runtime's `Settings`."""
        return self.baseline_settings | self.runtime.model_dump(exclude_none=True)

    def as_dict(self) -> dict[str, Any]:
        """Returns the full recipe, defaults filled in, as plain JSON types."""
        return self.model_dump(mode="json", by_alias=True)


def load_recipe(path: Path | str, overrides: tuple[str, ...] = ()) -> Recipe:
    """Reads and validates a recipe file.

    `overrides` are ``key.path=value`` strings, applied in order over the file; the value is YAML.
    Raises RecipeError naming every fault with its file, line, key and what was expected.
    """
    return _validated(read_layers(Path(path), overrides))


def parse_recipe(file: Path, data: dict[str, Any], overrides: tuple[str, ...] = ()) -> Recipe:
    """Validates a recipe that was stored as JSON in `file`, for example in a manifest.

    Raises RecipeError as `load_recipe` does.
    """
    return _validated(apply_overrides(Layers(file, data, {}), overrides))


def _validated(layers: Layers) -> Recipe:
    with report_faults(layers, Recipe):
        return Recipe.model_validate(layers.data)
