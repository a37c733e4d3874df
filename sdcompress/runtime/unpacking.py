"""Convolutions whose weights are stored in integers, but which are not computed in integers.

The CPU has no kernel for them, so their weights are turned into floating point when a model is
compiled. When it is compiled for several streams, OpenVINO 2026.4 now and then takes another
layer's: what it has made is found by an address, which may have been used again by then.
"""

from collections.abc import Iterator

import numpy as np
import openvino as ov
from openvino import opset13 as opset

from sdcompress.runtime.arrays import Float32

_CONVOLUTIONS = {"Convolution", "ConvolutionBackpropData", "GroupConvolution"}
_STEPS = {"Convert", "Multiply", "Reshape", "Subtract"}  # from stored weights to those used
_INTEGERS = (ov.Type.i8, ov.Type.u8, ov.Type.i4, ov.Type.u4)
# A quantizer of the activation may sit before these as well as behind them.
_REARRANGING = {
    "Concat", "Convert", "Interpolate", "Pad", "Reshape", "Squeeze", "Transpose", "Unsqueeze",
}  # fmt: skip


def packed_weights(model: ov.Model) -> Iterator[tuple[ov.Input, ov.Node]]:
    """Yields where each such convolution reads its weights, and the constant that stores them."""
    for op in model.get_ordered_ops():
        if op.get_type_name() not in _CONVOLUTIONS:
            continue
        stored, shifted = _stored(_source(op, 1))
        if stored.get_type_name() != "Constant" or stored.get_element_type() not in _INTEGERS:
            continue
        # The CPU multiplies 8-bit activations by signed weights without a zero point.
        signed = stored.get_element_type() == ov.Type.i8 and not shifted
        if not (signed and _is_quantized(_source(op, 0))):
            yield op.input(1), stored


def unpack_convolutions(model: ov.Model) -> int:
    """Puts such weights into the model as they are used; returns of how many convolutions."""
    places = [place for place, _ in packed_weights(model)]
    for place in places:
        used = opset.constant(_value(place.get_source_output().get_node()))
        place.replace_source_output(used.output(0))
    if places:
        model.validate_nodes_and_infer_types()
    return len(places)


def _source(node: ov.Node, index: int) -> ov.Node:
    return node.input_value(index).get_node()


def _is_quantized(node: ov.Node) -> bool:
    """Whether all of an activation comes out of quantizers."""
    kind = node.get_type_name()
    if kind not in _REARRANGING:
        return bool(kind == "FakeQuantize")
    joined = node.get_input_size() if kind == "Concat" else 1
    return all(_is_quantized(_source(node, index)) for index in range(joined))


def _stored(node: ov.Node) -> tuple[ov.Node, bool]:
    """What weights are made of, and whether something is subtracted on the way."""
    shifted = False
    while node.get_type_name() in _STEPS:
        shifted |= node.get_type_name() == "Subtract"
        node = _source(node, 0)
    return node, shifted


def _value(node: ov.Node) -> Float32:
    """What is made of constants."""
    kind = node.get_type_name()
    if kind == "Constant":
        return np.asarray(node.get_data(dtype=np.float32))
    values = _value(_source(node, 0))
    if kind == "Reshape":
        return values.reshape(node.shape)
    if kind == "Subtract":
        return values - _value(_source(node, 1))
    return values * _value(_source(node, 1)) if kind == "Multiply" else values
