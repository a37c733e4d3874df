"""Convolutions of enlarged pictures, computed at the size before.

Decoders double a picture, each value to four alike, and convolve it with 3 x 3 weights. Four
neighbouring results read the same 3 x 3 values of the picture before, each of them 2 x 2, with
weights that are sums: the same numbers from 16 products instead of 36.
"""

from collections.abc import Iterator, Mapping
from itertools import product

import numpy as np
import openvino as ov
from openvino import opset13 as opset

from sdcompress.runtime.arrays import Float32

_REPEATS = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric",
            "nearest_mode": "floor", "pads_begin": [0] * 4, "pads_end": [0] * 4}  # fmt: skip
_CONVOLVES = {"strides": [1, 1], "dilations": [1, 1], "pads_begin": [1, 1], "pads_end": [1, 1],
              "auto_pad": "explicit"}  # fmt: skip


def convolve_before_doubling(model: ov.Model) -> list[int]:
    """Rewrites every convolution that reads doubled rows and columns; returns the bytes made.

    Layers in 8 bits stay: sums of their weights need more.
    """
    found = [op for op in model.get_ordered_ops() if _convolves_doubled(op)]
    made = [_rewrite(convolution) for convolution in found]
    model.validate_nodes_and_infer_types()
    return made


def _convolves_doubled(op: ov.Node) -> bool:
    if op.get_type_name() != "Convolution" or not _says(op, _CONVOLVES):
        return False
    doubling, weights = (op.input_value(index) for index in (0, 1))
    shape = weights.partial_shape
    return (
        shape.is_static
        and list(shape.to_shape()[2:]) == [3, 3]
        and _float_constant(weights.get_node()) is not None
        and _doubles(doubling.get_node())
        and len(doubling.get_target_inputs()) == 1
    )


def _says(op: ov.Node, attributes: Mapping[str, object]) -> bool:
    found = op.get_attributes()
    return all(found.get(name) == value for name, value in attributes.items())


def _doubles(op: ov.Node) -> bool:
    """Whether a layer repeats every row and every column once."""
    if op.get_type_name() != "Interpolate" or not _says(op, _REPEATS):
        return False
    if op.get_attributes()["shape_calculation_mode"] == "scales":
        scales, axes = (op.input_value(index).get_node() for index in (1, 2))
        known = scales.get_type_name() == axes.get_type_name() == "Constant"
        return bool(known and list(axes.data) == [2, 3] and list(scales.data) == [2.0, 2.0])
    before, after = op.input_value(0).partial_shape, op.output(0).partial_shape
    if before.is_dynamic or after.is_dynamic:
        return False
    batch, channels, *sides = before.to_shape()
    return [batch, channels, *(2 * side for side in sides)] == list(after.to_shape())


def _float_constant(node: ov.Node) -> ov.Node | None:
    """The floating-point constant that weights are made of, widened at most."""
    if node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    known = node.get_type_name() == "Constant"
    return node if known and node.get_element_type() in (ov.Type.f16, ov.Type.f32) else None


def _rewrite(convolution: ov.Node) -> int:
    weights = _float_constant(convolution.input_value(1).get_node())
    if weights is None:
        raise ValueError(f"{convolution.get_friendly_name()} has no weights")
    before = convolution.input_value(0).get_node().input_value(0)
    end, bias = _with_bias(convolution)
    name, corners = end.get_friendly_name(), []
    for number, (kernel, begin, finish) in enumerate(_corners(weights.data.astype(np.float32))):
        one = opset.convolution(before, kernel, [1, 1], begin, finish, [1, 1])
        one.set_friendly_name(f"{name}/{number}")
        corners.append(one if bias is None else opset.add(one, bias))
    whole = opset.depth_to_space(opset.concat(corners, 1), "blocks_first", 2)
    whole.set_friendly_name(name)
    end.output(0).replace(whole.output(0))
    return 4 * 16 * int(weights.data.size) // 9


def _with_bias(convolution: ov.Node) -> tuple[ov.Node, ov.Output | None]:
    """Where the convolution ends, and the bias that is added until there."""
    readers = list(convolution.output(0).get_target_inputs())
    reader = readers[0].get_node()
    if len(readers) == 1 and reader.get_type_name() == "Add":
        bias = reader.input_value(1)
        shape = bias.partial_shape
        if bias.get_node().get_type_name() == "Constant" and list(shape.to_shape()[2:]) == [1, 1]:
            return reader, bias
    return convolution, None


def _corners(weights: Float32) -> Iterator[tuple[Float32, list[int], list[int]]]:
    """Weights [o, i, 2, 2] of the four results of a value, with the padding before and after."""
    for row, column in product((0, 1), repeat=2):
        kernel = _summed(_summed(weights, row, 2), column, 3)
        yield np.ascontiguousarray(kernel), [1 - row, 1 - column], [row, column]


def _summed(weights: Float32, second: int, axis: int) -> Float32:
    """Sums those of three weights that meet the same value, for the first or second result."""
    one, two, three = np.moveaxis(weights, axis, 0)
    pairs = (one + two, three) if second else (one, two + three)
    return np.stack(pairs, axis=axis)
