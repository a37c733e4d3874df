"""Tells how a device executes a bundle: which kernel runs a layer, and what became of its weights.

What a file stores in 8 bits is not always kept so. OpenVINO's CPU plugin multiplies by compressed
weights in linear layers, but unpacks those of convolutions when it compiles the model.

What is shown is the UNet asked for both branches of guidance in one batch, without shortcuts.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from sdcompress.runtime import Economy, Pipeline
from sdcompress.runtime.economy import TOGETHER
from sdcompress.runtime.settings import bundled_settings

_LAYERS = ("Convolution", "Deconvolution", "FullyConnected", "MatMul", "ScaledDotProductAttention")
_INTEGERS = ("i8", "u8", "i4", "u4")
_WORTH_SHOWING = 0.002  # of a component's time


@dataclass(frozen=True)
class ExecutedLayer:
    """One multiplying layer as the device runs it.

    `weights` is None where both sides are computed, and for devices other than the CPU, which do
    not tell. Precisions are OpenVINO's names, for example u8, i8, bf16 and f32.
    """

    name: str
    type: str
    kernel: str
    activations: str
    weights: str | None


@dataclass(frozen=True)
class LayerTime:
    """What a layer of any kind took in one inference; `precision` is the one that it runs in."""

    name: str
    type: str
    kernel: str
    precision: str
    seconds: float


@dataclass(frozen=True)
class KernelTime:
    """What all layers of one type with one kernel took in one inference."""

    type: str
    kernel: str
    layers: int
    seconds: float


def executed_layers(
    folder: Path, device: str = "CPU", precision: str | None = None
) -> dict[str, tuple[ExecutedLayer, ...]]:
    """Compiles a pipeline as its baseline is drawn and returns the layers of what draws, in order.

    An execution precision of None is the device's choice. Raises BundleError when the folder is no
    pipeline, DeviceError for an unknown device or a precision that it lacks.
    """
    models = _compiled(folder, device, precision).items()
    return {name: layers_of_compiled(compiled) for name, compiled in models}


def _compiled(
    folder: Path, device: str, precision: str | None, *, profiling: bool = False
) -> dict[str, ov.CompiledModel]:
    pipeline = Pipeline.load(
        folder,
        device=device,
        execution_precision=precision,
        profiling=profiling,
        economy=Economy(TOGETHER),
        verify="never",
    )
    settings = bundled_settings(folder, fast=False)
    pipeline.compile(settings)
    return pipeline.compiled_models(settings)


def describe_times(
    folder: Path, device: str = "CPU", precision: str | None = None, *, every_layer: bool = False
) -> Iterator[str]:
    """Yields lines that tell where the time of one inference of each component goes.

    Raises what `executed_layers` raises.
    """
    for name, compiled in _compiled(folder, device, precision, profiling=True).items():
        layers = times_of_compiled(compiled)
        kernels = by_kernel(layers)
        total = sum(one.seconds for one in kernels)
        yield f"{name} on {device}: {total * 1e3:.1f} ms"
        yield f"  {'time':>12} {'share':>6}  {'layers':>6}  {'type':<30} kernel"
        for one in kernels:
            if one.seconds >= _WORTH_SHOWING * total:
                yield (
                    f"  {one.seconds * 1e3:>9.2f} ms {one.seconds / total:>6.1%}  "
                    f"{one.layers:>6}  {one.type:<30} {one.kernel}"
                )
        if every_layer:
            yield from _layer_lines(layers, total)


def _layer_lines(layers: Sequence[LayerTime], total: float) -> Iterator[str]:
    """Those that took any time, most are part of another."""
    yield f"  {'time':>12} {'share':>6}  {'precision':<9} {'type':<22} {'kernel':<26} layer"
    for one in layers:
        if one.seconds:
            yield (
                f"  {one.seconds * 1e3:>9.3f} ms {one.seconds / total:>6.1%}  {one.precision:<9} "
                f"{one.type:<22} {one.kernel:<26} {one.name}"
            )


def times_of_compiled(compiled: ov.CompiledModel) -> tuple[LayerTime, ...]:
    """Runs a model that was compiled for profiling; the longest times come first."""
    nodes = compiled.get_runtime_model().get_ordered_ops()
    precisions = {node.get_friendly_name(): _info(node, "runtimePrecision") for node in nodes}
    layers = (
        LayerTime(
            one.node_name,
            one.node_type,
            one.exec_type,
            precisions.get(one.node_name) or "-",
            one.real_time.total_seconds(),
        )
        for one in quickest_profile(compiled)
    )
    return tuple(sorted(layers, key=lambda one: one.seconds, reverse=True))


def by_kernel(layers: Sequence[LayerTime]) -> tuple[KernelTime, ...]:
    """The times of layers of one type with one kernel together; the longest come first."""
    found: dict[tuple[str, str], list[float]] = {}
    for one in layers:
        found.setdefault((one.type, one.kernel), []).append(one.seconds)
    kernels = (KernelTime(*key, len(taken), sum(taken)) for key, taken in found.items())
    return tuple(sorted(kernels, key=lambda one: one.seconds, reverse=True))


def quickest_profile(compiled: ov.CompiledModel) -> list[Any]:
    """Runs a model that was compiled for profiling on noise; returns OpenVINO's word on each layer.

    Of three inferences the quickest counts, so that other load shows as little as possible.
    """
    return min(profiles(compiled, 3), key=lambda run: sum(seconds_of(one) for one in run))


def profiles(compiled: ov.CompiledModel, inferences: int) -> list[list[Any]]:
    """What a model that was compiled for profiling tells of each layer, inference by inference."""
    request, inputs = compiled.create_infer_request(), noise_for(compiled)
    request.infer(inputs)  # the first one also unpacks and allocates
    runs = []
    for _ in range(inferences):
        request.infer(inputs)
        runs.append(request.profiling_info)
    return runs


def noise_for(compiled: ov.CompiledModel) -> dict[Any, Any]:
    """Inputs of normal values: on what lies in memory by chance, arithmetic may be far slower."""
    random = np.random.default_rng(0)
    inputs = {}
    for port in compiled.inputs:
        values = random.standard_normal(tuple(port.shape))
        # Small token ids are in every vocabulary.
        whole = port.element_type.is_integral()
        inputs[port] = (np.abs(values) if whole else values).astype(port.element_type.to_dtype())
    return inputs


def seconds_of(one: Any) -> float:
    """What an executed operation took, of a request's profiling information."""
    return float(one.real_time.total_seconds())


def describe_executed(
    folder: Path, device: str = "CPU", precision: str | None = None, *, every_layer: bool = False
) -> Iterator[str]:
    """Yields lines that tell how many layers of each component run how."""
    for name, layers in executed_layers(folder, device, precision).items():
        yield f"{name} on {device}"
        if not layers:
            yield f"  {device} does not tell how it runs its layers"
            continue
        counts = Counter(
            (one.type, one.weights or "-", one.activations, one.kernel) for one in layers
        )
        yield f"  {'layers':>6}  {'type':<26} {'weights':<8} {'inputs':<7} kernel"
        for (kind, weights, activations, kernel), count in counts.most_common():
            yield f"  {count:>6}  {kind:<26} {weights:<8} {activations:<7} {kernel}"
        if every_layer:
            for one in layers:
                yield f"    {one.type:<26} {one.weights or '-':<8} {one.kernel:<26} {one.name}"


def layers_of_compiled(compiled: ov.CompiledModel) -> tuple[ExecutedLayer, ...]:
    """Lists the multiplying layers of a compiled model, in the order of execution."""
    nodes = compiled.get_runtime_model().get_ordered_ops()
    tells_weights = list(compiled.get_property("EXECUTION_DEVICES")) == ["CPU"]
    return tuple(
        ExecutedLayer(
            node.get_friendly_name(),
            kind,
            _info(node, "primitiveType"),
            _inputs(node),
            _weights(node, kind) if tells_weights else None,
        )
        for node in nodes
        if (kind := _info(node, "layerType")) in _LAYERS
    )


def _weights(node: Any, kind: str) -> str | None:
    """The precision in which the CPU plugin keeps a layer's weights.

    A constant of integers is kept as it is; one in floating point is packed in the precision of
    what the layer reads, whatever it is in the file.
    """
    if kind in ("MatMul", "ScaledDotProductAttention") or node.get_input_size() < 2:
        return None
    source = node.input_value(1).get_node()
    if _info(source, "layerType") == "Const":
        stored = str(source.get_output_element_type(0).get_type_name())
        if stored in _INTEGERS:
            return stored
    return _inputs(node)


def _inputs(node: Any) -> str:
    """The precision of what a layer reads."""
    return _info(node.input_value(0).get_node(), "outputPrecisions").split(",")[0]


def _info(node: Any, key: str) -> str:
    info = node.get_rt_info()
    return str(info[key].astype(str)) if key in info else ""
