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
_INTEGERS = (ov.Type.i8, ov.Type.u8, ov.Type.i4, ov.Type.u4)
# From stored weights to those that are used.
_STEPS = {"Convert", "Multiply", "Reshape", "Subtract", "Transpose"}
# A quantizer of the activation may sit before these as well as behind them.
_REARRANGING = {
    "Concat", "Convert", "Interpolate", "Pad", "Reshape", "Squeeze", "Transpose", "Unsqueeze",
}  # fmt: skip
_LEVELS = 256  # of 8 bits
_ALIKE = 16.0  # ranges that differ more are not joined in 8 bits

Range = tuple[float, float]


def packed_weights(model: ov.Model) -> Iterator[tuple[ov.Input, ov.Node]]:
    """Yields where each such convolution reads its weights, and the constant that stores them.

    What is not known to be computed in integers counts as one.
    """
    for op in model.get_ordered_ops():
        if op.get_type_name() not in _CONVOLUTIONS:
            continue
        stored, shifted = _stored(_source(op, 1))
        if stored is not None and not (_is_signed(stored, shifted) and _is_quantized(op)):
            yield op.input(1), stored


def unpack_convolutions(model: ov.Model) -> int:
    """Puts such weights into the model as they are used; returns of how many convolutions."""
    places = [place for place, _ in packed_weights(model)]
    unpacked: dict[str, ov.Node] = {}  # several convolutions may share them
    for place in places:
        packed = place.get_source_output().get_node()
        name = packed.get_name()
        if name not in unpacked:
            unpacked[name] = opset.constant(_value(packed), place.get_element_type())
        place.replace_source_output(unpacked[name].output(0))
    if places:
        model.validate_nodes_and_infer_types()
    return len(places)


def _source(node: ov.Node, index: int) -> ov.Node:
    return node.input_value(index).get_node()


def _is_signed(stored: ov.Node, shifted: bool) -> bool:
    """The CPU multiplies 8-bit activations by signed weights without a zero point."""
    return bool(stored.get_element_type() == ov.Type.i8) and not shifted


def _is_quantized(convolution: ov.Node) -> bool:
    """Whether all of the activation comes out of quantizers that the CPU computes behind."""
    if convolution.get_type_name() == "ConvolutionBackpropData":
        return False
    found = list(_ranges(_source(convolution, 0)))
    known = [max(abs(end) for end in one) for one in found if one is not None]
    return len(known) == len(found) and max(known) < _ALIKE * min(known)


def _ranges(node: ov.Node) -> Iterator[Range | None]:
    """Yields the range of each quantizer of an activation; None for what is not in 8 bits."""
    kind = node.get_type_name()
    if kind == "FakeQuantize":
        yield _range(node)
    elif kind not in _REARRANGING or not _keeps_quantized(node):
        yield None
    else:
        for index in range(node.get_input_size() if kind == "Concat" else 1):
            yield from _ranges(_source(node, index))


def _range(quantizer: ov.Node) -> Range | None:
    """What a quantizer cuts to, if it has one range for all channels and 8 bits."""
    ends = [_source(quantizer, index) for index in (3, 4)]
    if quantizer.get_attributes()["levels"] > _LEVELS:
        return None
    if any(one.get_type_name() != "Constant" or one.get_data().size != 1 for one in ends):
        return None
    low, high = (float(one.get_data().flat[0]) for one in ends)
    return (low, high) if low < high else None


def _keeps_quantized(node: ov.Node) -> bool:
    """Whether what is rearranged consists of numbers that the quantizer made."""
    attributes = node.get_attributes()
    if node.get_type_name() == "Interpolate":
        return bool(attributes["mode"] == "nearest")
    if node.get_type_name() == "Pad" and attributes["pad_mode"] == "constant":
        filling = _source(node, 3)
        return filling.get_type_name() == "Constant" and not np.any(filling.get_data())
    return True


def _stored(node: ov.Node) -> tuple[ov.Node | None, bool]:
    """The integers that weights are made of, if any, and whether something is subtracted."""
    shifted = False
    while node.get_type_name() in _STEPS:
        shifted |= node.get_type_name() == "Subtract"
        sides = [_source(node, 0)]
        if node.get_type_name() == "Multiply":
            sides.append(_source(node, 1))
        node = next((one for one in sides if _is_made_of_integers(one)), sides[0])
    return (node if _is_made_of_integers(node) else None), shifted


def _is_made_of_integers(node: ov.Node) -> bool:
    while node.get_type_name() in _STEPS:
        if node.get_type_name() == "Multiply" and _is_made_of_integers(_source(node, 1)):
            return True
        node = _source(node, 0)
    return node.get_type_name() == "Constant" and node.get_element_type() in _INTEGERS


def _value(node: ov.Node) -> Float32:
    """What is made of constants."""
    kind = node.get_type_name()
    if kind == "Constant":
        return np.asarray(node.get_data(dtype=np.float32))
    values = _value(_source(node, 0))
    if kind == "Reshape":
        return values.reshape(node.shape)
    if kind == "Transpose":
        return np.ascontiguousarray(values.transpose(_source(node, 1).get_data()))
    if kind == "Subtract":
        return values - _value(_source(node, 1))
    return values * _value(_source(node, 1)) if kind == "Multiply" else values
