"""Post-training quantization by NNCF, fed with statistics that were collected beforehand.

``nncf.quantize`` runs the model once over the data for SmoothQuant and once more for the ranges.
Its second model also computes the ranges of all *weights* inside the graph, and compiling that one
takes three times the memory of the model. Here NNCF's own pipeline decides where quantizers go and
computes every parameter, while the figures it asks for come from :mod:`sdcompress.activations` and,
for weights, from the constants. On the same inputs the result equals that of ``nncf.quantize``.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov
from nncf.common.factory import build_graph
from nncf.common.graph.transformations.commands import TargetType
from nncf.common.tensor_statistics.collectors import (
    AbsMaxReducer,
    MaxReducer,
    MeanPerChReducer,
    MinReducer,
    ShapeReducer,
)
from nncf.quantization.algorithms.post_training.pipeline import create_ptq_pipeline
from nncf.tensor import Tensor
from openvino._offline_transformations import compress_quantize_weights_transformation

from sdcompress.activations import (
    Activation,
    MissingStatisticsError,
    Statistics,
    bias_behind,
    channel_axis,
)
from sdcompress.errors import CompressionError

Array = np.ndarray[Any, Any]
_SMOOTHED = "/nncf_smooth_quant"
_OF_MEANS = (MeanPerChReducer, ShapeReducer)


def quantize(
    model: ov.Model,
    statistics: Statistics,
    parameters: dict[str, Any],
    on_step: Callable[[int, int], None] | None = None,
) -> ov.Model:
    """Quantizes a model in place, as ``nncf.quantize(model, dataset, **parameters)`` would.

    The subset is all collected items. Bias correction can be fast or none. Raises
    MissingStatisticsError when statistics have to be collected first.
    """
    pipeline = create_ptq_pipeline(subset_size=statistics.items, **parameters)
    steps = len(pipeline.pipeline_steps)
    for step in range(steps):
        graph = build_graph(model)
        points = pipeline.get_statistic_points_for_step(step, model, graph)
        _fill(points, model, statistics)
        model = pipeline.run_step(step, points, model, graph)
        if on_step:
            on_step(step + 1, steps + 1)
    compress_quantize_weights_transformation(model)
    return model


@dataclass(frozen=True)
class _Point:
    """One question of NNCF: the collector that wants an answer, and the tensor that gives it.

    The figures of `output` are multiplied by `scale`, if it was smoothed, and `bias` is taken off,
    channel by channel. With a matrix multiplication `layer` its weights times their mean is wanted.
    """

    collector: Any
    output: ov.Output
    is_weight: bool = False
    scale: Array | None = None
    bias: Array | None = None
    layer: Any = None

    @property
    def name(self) -> tuple[str, int]:
        return self.output.get_node().get_friendly_name(), self.output.get_index()


def _fill(points: Any, model: ov.Model, statistics: Statistics) -> None:
    asked = list(_points(points, model, statistics))
    missing = {
        activation
        for point in asked
        if not point.is_weight
        for reducer in point.collector.reducers
        for activation in _missing(point, reducer, statistics)
    }
    if missing:
        raise MissingStatisticsError(tuple(sorted(missing)))
    for point in asked:
        for values in _answers(point, statistics):
            point.collector.register_inputs(values)


def _points(points: Any, model: ov.Model, statistics: Statistics) -> Iterator[_Point]:
    operations = {one.get_friendly_name(): one for one in model.get_ops()}
    for _, point, collector in points.get_tensor_collectors():
        target = point.target_point
        operation = operations[target.target_node_name]
        if target.type == TargetType.POST_LAYER_OPERATION:
            yield _returned(collector, operation.output(target.port_id), statistics)
        elif target.type == TargetType.OPERATION_WITH_WEIGHTS:
            yield _Point(collector, operation.input_value(target.port_id), is_weight=True)
        else:
            yield _read(collector, operation.input_value(target.port_id))


def _read(collector: Any, output: ov.Output, layer: Any = None) -> _Point:
    smoothing = output.get_node()
    if not smoothing.get_friendly_name().endswith(_SMOOTHED):
        return _Point(collector, output, layer=layer)
    scale = _value(smoothing.input_value(1).get_node())
    return _Point(collector, smoothing.input_value(0), scale=scale, layer=layer)


def _returned(collector: Any, output: ov.Output, statistics: Statistics) -> _Point:
    """What a layer returns: as it was collected, or to be worked out from what was."""
    asked = _read(collector, output)
    if statistics.has(*asked.name):
        return asked
    biased = bias_behind(output)
    if biased:
        point = _Point(collector, biased[0], bias=_value(biased[1]).reshape(-1))
        if statistics.has(*point.name):
            return point
    layer = output.get_node()
    means_only = all(isinstance(one, _OF_MEANS) for one in collector.reducers)
    if means_only and layer.get_type_name() == "MatMul" and _multiplies_weights(layer):
        return _read(collector, layer.input_value(0), layer)
    return asked


def _multiplies_weights(layer: Any) -> bool:
    """Whether a matrix multiplication is rows of an activation times constant columns."""
    node = layer.input_value(1).get_node()
    while node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    is_plain = node.get_type_name() == "Constant" and len(node.get_output_shape(0)) == 2
    return is_plain and not layer.get_attributes()["transpose_a"]


def _missing(point: _Point, reducer: Any, statistics: Statistics) -> Iterator[Activation]:
    node, port = point.name
    rank = len(point.output.get_partial_shape())
    axis = _kept_axis(reducer, rank)
    if point.layer is not None:
        axis = rank - 1
    elif axis is None and point.scale is not None:
        axis = _scaled_axis(point.scale)
    if not statistics.has(node, port, axis):
        yield Activation(node, port, channel_axis(rank) if axis is None else axis)


def _answers(point: _Point, statistics: Statistics) -> Iterator[dict[int, list[Tensor]]]:
    """One dictionary for each item (for a weight: one), keyed as NNCF's collectors want them."""
    reducers = point.collector.reducers
    if point.is_weight:
        weight = _value(point.output.get_node())
        yield {hash(one): [Tensor(_reduced_weight(one, weight))] for one in reducers}
        return
    if point.layer is not None:
        yield from _products(point, statistics)
        return
    for item in range(statistics.items):
        yield {hash(one): [Tensor(_reduced(one, point, statistics, item))] for one in reducers}


def _products(point: _Point, statistics: Statistics) -> Iterator[dict[int, list[Tensor]]]:
    """Means of what a matrix multiplication returns; they are those of its input, multiplied."""
    node, port = point.name
    axis = len(statistics.shape(node, port)) - 1
    read = (statistics.read(node, port, item, axis)[0][2] for item in range(statistics.items))
    means = np.stack(list(read))
    if point.scale is not None:
        means = means * point.scale.reshape(-1)
    weight = _value(point.layer.input_value(1).get_node())
    is_transposed = point.layer.get_attributes()["transpose_b"]
    products = means @ (weight.T if is_transposed else weight)
    shape = np.array([*statistics.shape(node, port)[:-1], products.shape[1]], "i8")
    for mean in products:
        answers = {one: shape if isinstance(one, ShapeReducer) else mean
                   for one in point.collector.reducers}  # fmt: skip
        yield {hash(one): [Tensor(answer)] for one, answer in answers.items()}


def _reduced(reducer: Any, point: _Point, statistics: Statistics, item: int) -> Array:
    """One figure about an activation of one item, in the shape the reducer would return."""
    node, port = point.name
    shape = statistics.shape(node, port)
    if isinstance(reducer, ShapeReducer):
        return np.array(shape, "i8")
    kept = _kept_axis(reducer, len(shape))
    wanted = _scaled_axis(point.scale) if point.scale is not None and kept is None else kept
    figures, axis = statistics.read(node, port, item, wanted)
    if point.scale is not None:  # positive, so the order of minimum and maximum holds
        figures = figures * point.scale.reshape(-1)
    if point.bias is not None:
        figures = figures - point.bias
    values = _FIGURES[_kind(reducer)](*figures)
    if isinstance(reducer, MeanPerChReducer):
        return values
    if kept is not None:
        return values.reshape([-1 if one == axis else 1 for one in range(len(shape))])
    extreme = values.min() if isinstance(reducer, MinReducer) else values.max()
    return np.full([1] * len(shape), extreme, "f4")


def _reduced_weight(reducer: Any, weight: Array) -> Array:
    axes = tuple(range(weight.ndim)) if reducer._axes is None else reducer._axes
    if isinstance(reducer, MinReducer):
        return np.asarray(weight.min(axes, keepdims=True))
    values = weight if _kind(reducer) is MaxReducer else np.abs(weight)
    return np.asarray(values.max(axes, keepdims=True))


_FIGURES: dict[type, Callable[[Array, Array, Array], Array]] = {
    MinReducer: lambda minimum, _maximum, _mean: minimum,
    MaxReducer: lambda _minimum, maximum, _mean: maximum,
    AbsMaxReducer: lambda minimum, maximum, _mean: np.maximum(np.abs(minimum), np.abs(maximum)),
    MeanPerChReducer: lambda _minimum, _maximum, mean: mean,
}


def _kind(reducer: Any) -> type:
    for kind in _FIGURES:
        if isinstance(reducer, kind):
            return kind
    raise CompressionError(
        f"NNCF asks for {type(reducer).__name__}, which is not collected beforehand"
    )


def _kept_axis(reducer: Any, rank: int) -> int | None:
    """The channel axis that a reducer keeps, counted from the front; None when it keeps none."""
    if isinstance(reducer, MeanPerChReducer):
        return int(reducer._channel_axis % rank)
    if isinstance(reducer, ShapeReducer) or reducer._axes is None:
        return None
    kept = set(range(rank)) - {axis % rank for axis in reducer._axes}
    return kept.pop() if len(kept) == 1 else None


def _scaled_axis(scale: Array) -> int:
    return int(np.argmax(scale.shape))


def _value(node: Any) -> Array:
    """A constant as float32, seen through the conversion of compressed weights."""
    while node.get_type_name() != "Constant":
        node = node.input_value(0).get_node()
    return np.asarray(node.get_data(dtype=np.float32))
