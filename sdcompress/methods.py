"""How each component may be compressed: a closed table of methods, each with typed options."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sdcompress.recipe_yaml import FaultyKeyError, Section

COMPONENTS = ("text_encoder", "unet", "vae_decoder", "vae_encoder")
OverflowFix = Literal["auto", "disable", "first_layer", "enable"]


class IgnoredScope(Section):
    """Layers left in floating point, by exact name, regular expression or operation type."""

    names: list[str] = Field(default_factory=list)
    patterns: list[str] = Field(default_factory=list)
    types: list[str] = Field(default_factory=list)


class Fp16(Section):
    """16-bit weights, floating-point execution."""

    method: Literal["fp16"]


class Int8Weights(Section):
    """8-bit weights, floating-point activations. Needs no calibration.

    OpenVINO's CPU plugin multiplies by the compressed weights of linear layers, but unpacks those
    of convolutions when it compiles a model: `convolutions` makes files smaller, and memory larger.
    """

    method: Literal["int8_weights"]
    symmetric: bool = False
    convolutions: bool = False
    ignored: IgnoredScope = IgnoredScope()


class Int4Weights(Section):
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


class ActivationQuantization(Section):
    preset: Literal["performance", "mixed"] = "mixed"
    bias_correction: Literal["none", "fast", "accurate"] = "fast"
    overflow_fix: OverflowFix = "auto"
    ignored: IgnoredScope = IgnoredScope()

    @property
    def needs_statistics(self) -> bool:
        """Whether collected statistics feed it; accurate correction runs the model itself."""
        return self.bias_correction != "accurate"


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


Method = Annotated[Fp16 | Int8Weights | Int4Weights | Hybrid | Int8, Field(discriminator="method")]
METHODS: dict[str, type[Section]] = {
    "fp16": Fp16,
    "int8_weights": Int8Weights,
    "int4_weights": Int4Weights,
    "hybrid": Hybrid,
    "int8": Int8,
}
_FP16 = Fp16(method="fp16")


class Compress(Section):
    """One method for each component."""

    text_encoder: Method = _FP16
    unet: Method = _FP16
    vae_decoder: Method = _FP16
    vae_encoder: Method = _FP16

    @model_validator(mode="after")
    def _methods_fit(self) -> Self:
        if isinstance(self.vae_encoder, ActivationQuantization):
            raise FaultyKeyError(
                "vae_encoder",
                f"vae_encoder cannot use '{self.vae_encoder.method}': calibration denoises from "
                "noise and records no encoder inputs; use fp16, int8_weights or int4_weights",
            )
        if isinstance(self.text_encoder, Hybrid):
            raise FaultyKeyError(
                "text_encoder",
                "text_encoder cannot use 'hybrid': it has no convolutions to quantize; "
                "use int8_weights or int8",
            )
        return self

    def method_of(self, component: str) -> Method:
        """Returns the options of one component's method."""
        method: Method = getattr(self, component)
        return method

    def collects(self, component: str) -> bool:
        """Tells whether statistics of a component are collected for its method."""
        method = self.method_of(component)
        return isinstance(method, ActivationQuantization) and method.needs_statistics

    @property
    def needs_calibration(self) -> bool:
        return any(isinstance(self.method_of(c), ActivationQuantization) for c in COMPONENTS)
