"""How each component may be compressed: a closed table of methods, each with typed options."""

import re
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from sdcompress.recipe_yaml import FaultyKeyError, Section

COMPONENTS = ("text_encoder", "unet", "vae_decoder", "vae_encoder")
Ranges = Literal["mean", "median", "widest", "narrowest_step", "percentile", "mse"]
Grouping = Literal["layer", "part", "block"]
PLAIN: Final = "fp16"
OverflowFix = Literal["auto", "disable", "first_layer", "enable"]


class IgnoredScope(Section):
    """Layers left in floating point, by exact name, regular expression or operation type."""

    names: list[str] = Field(default_factory=list)
    patterns: list[str] = Field(default_factory=list)
    types: list[str] = Field(default_factory=list)


class CompressionMethod(Section):
    """What every method can tell of itself."""

    @property
    def is_calibrated(self) -> bool:
        """Whether it needs recorded inputs."""
        return False

    @property
    def needs_statistics(self) -> bool:
        """Whether statistics collected on recorded inputs feed it."""
        return False


class Fp16(CompressionMethod):
    """16-bit weights, floating-point execution."""

    method: Literal["fp16"]


class Int8Weights(CompressionMethod):
    """8-bit weights, floating-point activations. Needs no calibration.

    OpenVINO's CPU plugin multiplies by the compressed weights of linear layers, but unpacks those
    of convolutions when it compiles a model: `convolutions` makes files smaller, and memory larger.
    """

    method: Literal["int8_weights"]
    symmetric: bool = False
    convolutions: bool = False
    ignored: IgnoredScope = IgnoredScope()


class Int4Weights(CompressionMethod):
    """4-bit weights for linear layers; embeddings stay at 8 bits.

    `convolutions`, explained at `int8_weights`, puts convolutions at 8 bits, too. `group_size`
    columns share a scale (-1: a whole row). It shrinks by itself for layers whose channel count it
    does not divide. `ratio` is the share of the linear weights that get 4 bits.
    """

    method: Literal["int4_weights"]
    symmetric: bool = True
    group_size: Literal[-1, 32, 64, 128, 256] = 64
    ratio: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    all_layers: bool = False
    convolutions: bool = False
    ignored: IgnoredScope = IgnoredScope()


class ActivationQuantization(CompressionMethod):
    """What is common to methods that quantize activations.

    `ranges` is how those of all recorded inputs become one: their `mean` or `median`; the `widest`,
    so that no timestep is cut; the `narrowest_step`'s, each step's own being its widest (as
    NVIDIA's ModelOpt does for diffusion); or by NNCF on all values, between `percentile`s or with
    the least squared error (`mse`), which runs the model itself.
    """

    preset: Literal["performance", "mixed"] = "mixed"
    ranges: Ranges = "mean"
    bias_correction: Literal["none", "fast", "accurate"] = "fast"
    overflow_fix: OverflowFix = "auto"
    ignored: IgnoredScope = IgnoredScope()

    @property
    def is_calibrated(self) -> bool:
        return True

    @property
    def needs_statistics(self) -> bool:
        runs_itself = self.bias_correction == "accurate" or self.ranges in ("percentile", "mse")
        return not runs_itself

    @model_validator(mode="after")
    def _steps_are_collected(self) -> Self:
        if self.ranges == "narrowest_step" and self.bias_correction == "accurate":
            raise FaultyKeyError(
                "ranges",
                "narrowest_step goes by collected statistics, which bias_correction: accurate does "
                "without: use fast or none",
            )
        return self


class Hybrid(ActivationQuantization):
    """Convolutions with 8-bit weights and activations, the rest with 8-bit weights only."""

    method: Literal["hybrid"]


class Int8(ActivationQuantization):
    """Full 8-bit post-training quantization of weights and activations (W8A8).

    `smooth_quant_alpha` moves activation outliers into the weights of matrix multiplications
    (SmoothQuant, arXiv:2211.10438); null switches it off.
    """

    method: Literal["int8"]
    smooth_quant_alpha: Annotated[float, Field(ge=0.0, le=1.0)] | None = 0.95


Plain = Annotated[Fp16 | Int8Weights | Int4Weights | Hybrid | Int8, Field(discriminator="method")]


class Mixed(CompressionMethod):
    """Another method for each layer, as `sdcompress search` finds them.

    The whole component is compressed by each of the `variants`. `layers` maps regular expressions
    to their names, or to fp16: a layer is that of the variant whose expression is the first to be
    found in the layer's name, and else that of `otherwise`.
    """

    method: Literal["mixed"]
    variants: Annotated[dict[str, Plain], Field(min_length=1)]
    layers: dict[str, str]
    otherwise: str = PLAIN

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        if PLAIN in self.variants:
            raise FaultyKeyError(
                f"variants.{PLAIN}", f"{PLAIN} is what a layer is by itself: choose another name"
            )
        for pattern in self.layers:
            try:
                re.compile(pattern)
            except re.error as error:
                raise FaultyKeyError("layers", f"'{pattern}' is no expression: {error}") from None
        chosen = {*self.layers.values(), self.otherwise}
        unknown = chosen - {PLAIN, *self.variants}
        if unknown:
            raise FaultyKeyError(
                "layers", f"'{min(unknown)}' is none of the variants {', '.join(self.variants)}"
            )
        unused = self.variants.keys() - chosen
        if unused:
            raise FaultyKeyError(f"variants.{min(unused)}", "no layer is of this variant")
        return self

    @property
    def is_calibrated(self) -> bool:
        return any(one.is_calibrated for one in self.variants.values())

    @property
    def needs_statistics(self) -> bool:
        return any(one.needs_statistics for one in self.variants.values())

    def variant_of(self, layer: str) -> str | None:
        """Returns the name of the variant a layer is of; None where it stays as it is."""
        found = (one for pattern, one in self.layers.items() if re.search(pattern, layer))
        name = next(found, self.otherwise)
        return None if name == PLAIN else name


Method = Annotated[
    Fp16 | Int8Weights | Int4Weights | Hybrid | Int8 | Mixed, Field(discriminator="method")
]
METHODS: dict[str, type[CompressionMethod]] = {
    "fp16": Fp16,
    "int8_weights": Int8Weights,
    "int4_weights": Int4Weights,
    "hybrid": Hybrid,
    "int8": Int8,
    "mixed": Mixed,
}
_FP16 = Fp16(method="fp16")


def made_for(*methods: Method) -> list[Method]:
    """The methods, each once; before a mixture, what it takes layers from."""
    found: list[Method] = []
    for method in methods:
        parts = method.variants.values() if isinstance(method, Mixed) else ()
        for one in (*parts, method):
            if one not in found:
                found.append(one)
    return found


def most_of(method: Method) -> Plain:
    """What a mixture is where no pattern says otherwise, as for most layers; others as they are."""
    return method.variants.get(method.otherwise, _FP16) if isinstance(method, Mixed) else method


class Compress(Section):
    """One method for each component."""

    text_encoder: Method = _FP16
    unet: Method = _FP16
    vae_decoder: Method = _FP16
    vae_encoder: Method = _FP16

    @model_validator(mode="after")
    def _methods_fit(self) -> Self:
        if self.vae_encoder.is_calibrated:
            raise FaultyKeyError(
                "vae_encoder",
                f"vae_encoder cannot use '{self.vae_encoder.method}': calibration denoises from "
                "noise and records no encoder inputs; use fp16, int8_weights or int4_weights",
            )
        for component in ("text_encoder", "vae_decoder"):
            for one in self._plain(component):
                if isinstance(one, ActivationQuantization) and one.ranges == "narrowest_step":
                    raise FaultyKeyError(
                        f"{component}.ranges", f"narrowest_step: {component} has no timesteps"
                    )
        if any(isinstance(one, Hybrid) for one in self._plain("text_encoder")):
            raise FaultyKeyError(
                "text_encoder",
                "text_encoder cannot use 'hybrid': it has no convolutions to quantize; "
                "use int8_weights or int8",
            )
        return self

    def _plain(self, component: str) -> "tuple[Plain, ...]":
        method = self.method_of(component)
        return tuple(method.variants.values()) if isinstance(method, Mixed) else (method,)

    def method_of(self, component: str) -> Method:
        """Returns the options of one component's method."""
        method: Method = getattr(self, component)
        return method

    def collects(self, component: str) -> bool:
        """Tells whether statistics of a component are collected for its method."""
        return self.method_of(component).needs_statistics

    @property
    def needs_calibration(self) -> bool:
        return any(self.method_of(component).is_calibrated for component in COMPONENTS)
