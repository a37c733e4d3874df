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
    channel_axis,
)
from sdcompress.errors import CompressionError

Array = np.ndarray[Any, Any]
_SMOOTHED = "/nncf_smooth_quant"


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
    """One question of NNCF: a tensor, the collector that wants it and, if smoothed, by what."""

    collector: Any
    output: ov.Output
    is_weight: bool
    scale: Array | None

    @property
    def name(self) -> tuple[str, int]:
        return self.output.get_node().get_friendly_name(), self.output.get_index()


def _fill(points: Any, model: ov.Model, statistics: Statistics) -> None:
    asked = list(_points(points, model))
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


def _points(points: Any, model: ov.Model) -> Iterator[_Point]:
    operations = {one.get_friendly_name(): one for one in model.get_ops()}
    for _, point, collector in points.get_tensor_collectors():
        target = point.target_point
        operation = operations[target.target_node_name]
        if target.type == TargetType.POST_LAYER_OPERATION:
            output = operation.output(target.port_id)
        else:
            output = operation.input_value(target.port_id)
        is_weight = target.type == TargetType.OPERATION_WITH_WEIGHTS
        scale = None
        if output.get_node().get_friendly_name().endswith(_SMOOTHED):
            smoothing = output.get_node()
            scale = _value(smoothing.input_value(1).get_node())
            output = smoothing.input_value(0)
        yield _Point(collector, output, is_weight, scale)


def _missing(point: _Point, reducer: Any, statistics: Statistics) -> Iterator[Activation]:
    node, port = point.name
    rank = len(point.output.get_partial_shape())
    axis = _kept_axis(reducer, rank)
    if axis is None and point.scale is not None:
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
    for item in range(statistics.items):
        yield {hash(one): [Tensor(_reduced(one, point, statistics, item))] for one in reducers}


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
