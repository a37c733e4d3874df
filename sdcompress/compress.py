"""Compresses one component's IR with NNCF: a closed table of methods, each with typed options.

`hybrid` follows huggingface/optimum-intel #584: convolutions get 8-bit weights and activations,
everything else 8-bit weights only, because plain 8-bit quantization of the whole UNet is known to
hurt pictures. `int8` is that plain quantization, with SmoothQuant (arXiv:2211.10438).

Quantizers are set from collected statistics (:mod:`sdcompress.quantization`); only accurate bias
correction runs the model on the recorded inputs itself, and needs the memory that this takes.
"""

import gc
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import openvino as ov
from openvino import opset13 as opset

from sdcompress.activations import ModelInputs, Statistics
from sdcompress.errors import CompressionError
from sdcompress.grafting import join
from sdcompress.ir import IR_NAME, ir_bytes, writing_ir
from sdcompress.methods import (
    ActivationQuantization,
    Fp16,
    Hybrid,
    IgnoredScope,
    Int4Weights,
    Int8,
    Int8Weights,
    Method,
    Mixed,
    Plain,
)
from sdcompress.precision import count_by_precision, layers_of, weight_constant
from sdcompress.quiet import quiet_libraries
from sdcompress.runtime.mapping import reading

if TYPE_CHECKING:
    import nncf

OnStep = Callable[[int, int], None] | None


@dataclass(frozen=True)
class CompressedIR:
    """A compressed component: folder, method, bytes and how many layers have which precision."""

    folder: Path
    method: str
    bytes: int
    layers_by_precision: dict[str, int]


@dataclass(frozen=True)
class Recorded:
    """What calibration left for one component: its inputs, and the statistics collected on them."""

    inputs: ModelInputs
    statistics: tuple[Path, ...]


def compress(
    baseline: Path,
    options: Plain,
    folder: Path,
    recorded: Recorded | None,
    has_vnni: bool,
    on_step: OnStep = None,
) -> CompressedIR:
    """Reads the FP IR in `baseline`, compresses it and writes it to `folder`.

    `has_vnni` says whether the target multiplies 8-bit integers without intermediate overflow
    (VNNI or AMX); without, `overflow_fix: auto` halves the range of all quantized weights.
    Raises CompressionError when calibration inputs are missing or NNCF rejects the combination, and
    MissingStatisticsError when other statistics have to be collected first.
    """
    import nncf

    if options.is_calibrated and recorded is None:
        raise CompressionError(f"{options.method} needs calibration inputs for {baseline.name}")
    with reading(baseline / IR_NAME) as original:
        try:
            with quiet_libraries():
                model = _METHODS[type(options)](original, options, recorded, has_vnni, on_step)
        except (nncf.ValidationError, nncf.InternalError, nncf.UnsupportedModelError) as error:
            raise CompressionError(
                f"{baseline.name}: NNCF cannot apply {options.method}: {error}"
            ) from error
        del original
        _save(model, folder)
        del model
        gc.collect()
    return _finished(baseline, options, folder, on_step)


def mix(
    baseline: Path,
    variants: Mapping[str, Path],
    options: Mixed,
    folder: Path,
    on_step: OnStep = None,
) -> CompressedIR:
    """Takes each layer from one of the `variants`, folders with compressed IR, or the baseline.

    Raises CompressionError for an expression that no layer's name has.
    """
    with ExitStack() as opened:
        model = opened.enter_context(reading(baseline / IR_NAME))
        _require_found(options.layers, model, baseline)
        joints = [
            joint
            for name, variant in variants.items()
            for joint in join(model, opened.enter_context(reading(variant / IR_NAME)))
            if options.variant_of(joint.name) == name
        ]
        for joint in joints:
            joint.lead(joint.variant)
        model.validate_nodes_and_infer_types()
        _save(model, folder)
        del model, joints
        gc.collect()
    return _finished(baseline, options, folder, on_step)


def _require_found(patterns: Iterable[str], model: ov.Model, baseline: Path) -> None:
    names = [one.get_friendly_name() for one in model.get_ops()]
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in names):
            raise CompressionError(
                f"compress.{baseline.name}.layers: no layer's name has '{pattern}'; "
                "`sdcompress inspect` lists a model's layers"
            )


def _save(model: ov.Model, folder: Path) -> None:
    _halve_weights(model)
    folder.mkdir(parents=True)
    with writing_ir(folder):
        ov.save_model(model, folder / IR_NAME, compress_to_fp16=True)


def _finished(baseline: Path, options: Method, folder: Path, on_step: OnStep) -> CompressedIR:
    layers = layers_of(folder / IR_NAME)
    (folder / "config.json").write_bytes((baseline / "config.json").read_bytes())
    if on_step:
        on_step(1, 1)
    return CompressedIR(folder, options.method, ir_bytes(folder), count_by_precision(layers))


@contextmanager
def _without_collection() -> Iterator[None]:
    """Switches the garbage collector off inside the block.

    NNCF makes graphs of a million small objects and keeps them. Looking through them again and
    again finds nothing and takes a sixth of the time of quantizing a full-size UNet.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _halve_weights(model: ov.Model) -> None:
    """Stores the weights of layers that were left alone in 16 bits.

    Saving does this by itself, but not once a model has 8-bit constants.
    """
    for operation in model.get_ordered_ops():
        if operation.get_type_name() not in ("Convolution", "MatMul", "Gather"):
            continue
        for port in range(min(operation.get_input_size(), 2)):
            constant = operation.input_value(port).get_node()
            if constant.get_type_name() != "Constant" or len(constant.get_output_shape(0)) < 2:
                continue
            if (
                constant.get_element_type() == ov.Type.f32
                and np.isfinite(half := constant.data.astype(np.float16)).all()
            ):
                widened = opset.convert(opset.constant(half), ov.Type.f32)
                operation.input(port).replace_source_output(widened.output(0))


def _fp16(model: ov.Model, *_: Any) -> ov.Model:
    return model  # saving halves the weights


def _int8_weights(model: ov.Model, options: Int8Weights, *_: Any) -> ov.Model:
    import nncf

    modes = nncf.CompressWeightsMode
    return nncf.compress_weights(
        model,
        mode=modes.INT8_SYM if options.symmetric else modes.INT8_ASYM,
        ignored_scope=_scope(options.ignored, _convolutions(model, options)),
    )


def _convolutions(model: ov.Model, options: Int8Weights | Int4Weights) -> IgnoredScope:
    """The convolutions, unless they are to be compressed; NNCF refuses types that are not there."""
    kinds = {operation.get_type_name() for operation in model.get_ops()}
    return IgnoredScope(types=[] if options.convolutions else sorted(kinds & {"Convolution"}))


def _int4_weights(model: ov.Model, options: Int4Weights, *_: Any) -> ov.Model:
    import nncf
    from nncf.quantization.advanced_parameters import (
        AdvancedCompressionParameters,
        GroupSizeFallbackMode,
    )

    modes = nncf.CompressWeightsMode
    adjust = AdvancedCompressionParameters(group_size_fallback_mode=GroupSizeFallbackMode.ADJUST)
    return nncf.compress_weights(
        model,
        mode=modes.INT4_SYM if options.symmetric else modes.INT4_ASYM,
        ratio=options.ratio,
        group_size=options.group_size,
        all_layers=options.all_layers,
        ignored_scope=_scope(options.ignored, _convolutions(model, options)),
        advanced_parameters=adjust if options.group_size > 0 else None,
    )


def _hybrid(
    model: ov.Model, options: Hybrid, recorded: Recorded, has_vnni: bool, on_step: OnStep
) -> ov.Model:
    import nncf

    convolutions = IgnoredScope(types=["Convolution"])
    model = nncf.compress_weights(
        model,
        mode=nncf.CompressWeightsMode.INT8_ASYM,
        ignored_scope=_scope(options.ignored, convolutions),
    )
    linear = IgnoredScope(names=_weighted_names(model, ("MatMul", "Gather")))
    scope = _scope(options.ignored, linear)
    return _quantize(model, options, recorded, _parameters(options, has_vnni, scope, None), on_step)


def _int8(
    model: ov.Model, options: Int8, recorded: Recorded, has_vnni: bool, on_step: OnStep
) -> ov.Model:
    scope = _scope(options.ignored)
    parameters = _parameters(options, has_vnni, scope, options.smooth_quant_alpha)
    return _quantize(model, options, recorded, parameters, on_step)


def _quantize(
    model: ov.Model,
    options: ActivationQuantization,
    recorded: Recorded,
    parameters: dict[str, Any],
    on_step: OnStep,
) -> ov.Model:
    import nncf

    from sdcompress.quantization import quantize

    if not options.needs_statistics:
        inputs = recorded.inputs
        return nncf.quantize(model, nncf.Dataset(inputs), subset_size=len(inputs), **parameters)
    steps = _by_timestep(recorded.inputs) if options.ranges == "narrowest_step" else None
    with _without_collection():
        return quantize(model, Statistics(*recorded.statistics, merged=steps), parameters, on_step)


def _by_timestep(inputs: Any) -> list[list[int]]:
    """The recorded inputs of each timestep."""
    found: dict[float, list[int]] = {}
    for item, timestep in enumerate(inputs.timesteps().tolist()):
        found.setdefault(timestep, []).append(item)
    return list(found.values())


def _parameters(
    options: ActivationQuantization,
    has_vnni: bool,
    scope: "nncf.IgnoredScope",
    smooth_quant_alpha: float | None,
) -> dict[str, Any]:
    """The arguments of ``nncf.quantize``."""
    import nncf
    from nncf.quantization.advanced_parameters import (
        AdvancedQuantizationParameters,
        AdvancedSmoothQuantParameters,
        OverflowFix,
    )

    alpha = -1.0 if smooth_quant_alpha is None else smooth_quant_alpha
    return {
        "preset": nncf.QuantizationPreset(options.preset),
        "model_type": nncf.ModelType.TRANSFORMER,
        "fast_bias_correction": options.bias_correction != "accurate",
        "ignored_scope": scope,
        "advanced_parameters": AdvancedQuantizationParameters(
            overflow_fix=OverflowFix[_overflow_fix(options.overflow_fix, has_vnni)],
            disable_bias_correction=options.bias_correction == "none",
            smooth_quant_alphas=AdvancedSmoothQuantParameters(matmul=alpha, convolution=-1.0),
            **_range_estimator(options.ranges),
        ),
    }


def _range_estimator(ranges: str) -> dict[str, Any]:
    """NNCF's parameters for how ranges of activations are found; none for its own choice."""
    from nncf.quantization.range_estimator import (
        AggregatorType,
        RangeEstimatorParameters,
        RangeEstimatorParametersSet,
        StatisticsCollectorParameters,
        StatisticsType,
    )

    def narrowest(kind: StatisticsType, aggregator: AggregatorType) -> Any:
        return StatisticsCollectorParameters(statistics_type=kind, aggregator_type=aggregator)

    known = {
        "median": RangeEstimatorParametersSet.MEDIAN_MINMAX,
        "widest": RangeEstimatorParametersSet.MINMAX,
        "narrowest_step": RangeEstimatorParameters(
            min=narrowest(StatisticsType.MIN, AggregatorType.MAX),
            max=narrowest(StatisticsType.MAX, AggregatorType.MIN),
        ),
        "percentile": RangeEstimatorParametersSet.MEAN_QUANTILE,
        "mse": RangeEstimatorParametersSet.HISTOGRAM,
    }
    return {"activations_range_estimator_params": known[ranges]} if ranges in known else {}


def _overflow_fix(setting: str, has_vnni: bool) -> str:
    """Without VNNI, 8-bit products saturate in 16 bits; NNCF then keeps weights to 7 bits."""
    if setting == "auto":
        setting = "disable" if has_vnni else "enable"
    return setting.upper()


def _weighted_names(model: ov.Model, kinds: tuple[str, ...]) -> list[str]:
    names = []
    for operation in model.get_ops():
        kind = operation.get_type_name()
        if kind not in kinds:
            continue
        ports = (0,) if kind == "Gather" else (0, 1)
        if any(weight_constant(operation.input_value(p).get_node()) is not None for p in ports):
            names.append(operation.get_friendly_name())
    return names


def _scope(*scopes: IgnoredScope) -> "nncf.IgnoredScope":
    import nncf

    return nncf.IgnoredScope(
        names=[name for scope in scopes for name in scope.names],
        patterns=[pattern for scope in scopes for pattern in scope.patterns],
        types=[kind for scope in scopes for kind in scope.types],
    )


_METHODS: dict[type[Any], Callable[..., ov.Model]] = {
    Fp16: _fp16,
    Int8Weights: _int8_weights,
    Int4Weights: _int4_weights,
    Hybrid: _hybrid,
    Int8: _int8,
}
