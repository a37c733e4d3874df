"""Convolutions whose weights are stored in integers, but which are not computed in integers.

The CPU has no kernel for them, so their weights are turned into floating point when a model is
compiled. When it is compiled for several streams, OpenVINO 2026.4 now and then takes another
layer's: what it has made is found by an address, which may have been used again by then.
"""

from collections.abc import Iterator

import numpy as np
import openvino as ov
from openvino import opset13 as opset
from openvino.properties import hint

_STEPS = {"Convert", "Subtract", "Multiply"}  # from stored weights to those that are used
_INTEGERS = (ov.Type.i8, ov.Type.u8, ov.Type.i4, ov.Type.u4)
# A quantizer of the activation may sit before these as well as behind them.
_REARRANGING = {
    "Concat", "Convert", "Interpolate", "Pad", "Reshape", "Squeeze", "Transpose", "Unsqueeze",
}  # fmt: skip


def packed_weights(model: ov.Model) -> Iterator[tuple[ov.Output, ov.Node]]:
    """Yields the weights of every such convolution, as they are used and as they are stored."""
    for op in model.get_ordered_ops():
        if op.get_type_name() == "Convolution" and not _is_quantized(op.input_value(0).get_node()):
            weights = op.input_value(1)
            stored = _stored(weights.get_node())
            if stored is not None and stored.get_element_type() in _INTEGERS:
                yield weights, stored


def unpack_convolutions(model: ov.Model, core: ov.Core) -> int:
    """Puts such weights into the model as they are used; returns of how many convolutions."""
    found = [weights for weights, _ in packed_weights(model)]
    if not found:
        return 0
    alone = ov.Model([opset.result(weights) for weights in found], [])
    values = core.compile_model(alone, "CPU", {hint.inference_precision(): ov.Type.f32})({})
    for index, weights in enumerate(found):
        used = opset.constant(np.array(values[index])).output(0)
        for reader in weights.get_target_inputs():
            if reader.get_node().get_type_name() == "Convolution":
                reader.replace_source_output(used)
    model.validate_nodes_and_infer_types()
    return len(found)


def _is_quantized(node: ov.Node) -> bool:
    while node.get_type_name() in _REARRANGING:
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "FakeQuantize")


def _stored(node: ov.Node) -> ov.Node | None:
    """The constant that weights are made of; None where something else is done to them."""
    while node.get_type_name() in _STEPS:
        node = node.input_value(0).get_node()
    return node if node.get_type_name() == "Constant" else None
