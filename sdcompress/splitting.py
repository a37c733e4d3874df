"""Splits layers of a UNet so that parts with different ranges get quantizers of their own.

Both changes are exact in floating point. A convolution over a concatenation is the sum of two, over
what comes from below and over the skip connection, whose ranges differ (Q-Diffusion,
arXiv:2302.04304). And the text's first token, the same for every prompt, is far larger than the
others (MixDQ, arXiv:2405.17873), so that its keys and values are better computed apart.
"""

import numpy as np
import openvino as ov
from openvino import opset13 as opset

_TEXT = "encoder_hidden_states"
FIRST = "/first_token"


def split_skips(model: ov.Model) -> int:
    """Splits convolutions over two concatenated inputs; returns how many.

    The parts are called like the layer, with /0 and /1 behind it.
    """
    found = [one for one in model.get_ordered_ops() if _reads_skip(one)]
    for convolution in found:
        _split(convolution)
    model.validate_nodes_and_infer_types()
    return len(found)


def _reads_skip(operation: ov.Node) -> bool:
    if operation.get_type_name() != "Convolution":
        return False
    joint = operation.input_value(0).get_node()
    if joint.get_type_name() != "Concat" or joint.get_input_size() != 2:
        return False
    return bool(joint.get_attributes()["axis"] == 1)


def _split(convolution: ov.Node) -> None:
    joint = convolution.input_value(0).get_node()
    begin, parts = 0, []
    for index in range(2):
        values = joint.input_value(index)
        end = begin + values.get_partial_shape()[1].get_length()
        weights = _channels(convolution.input_value(1).get_node(), begin, end)
        attributes = convolution.get_attributes()
        part = opset.convolution(
            values,
            weights,
            attributes["strides"],
            attributes["pads_begin"],
            attributes["pads_end"],
            attributes["dilations"],
        )
        part.set_friendly_name(f"{convolution.get_friendly_name()}/{index}")
        parts.append(part)
        begin = end
    readers = convolution.output(0).get_target_inputs()
    both = opset.add(*parts)
    both.set_friendly_name(f"{convolution.get_friendly_name()}/sum")
    for reader in readers:
        reader.replace_source_output(both.output(0))


def _channels(weights: ov.Node, begin: int, end: int) -> ov.Output:
    """The weights of some input channels, in the type in which they are stored."""
    if weights.get_type_name() == "Convert":
        part = _channels(weights.input_value(0).get_node(), begin, end)
        return opset.convert(part, weights.get_output_element_type(0)).output(0)
    # Numpy knows no bfloat16; widened, its numbers are the same.
    kind = weights.get_output_element_type(0)
    values = weights.get_data(dtype=np.float32) if kind == ov.Type.bf16 else weights.data
    part = opset.constant(np.ascontiguousarray(values[:, begin:end]))
    return (part if part.get_output_element_type(0) == kind else opset.convert(part, kind)).output(
        0
    )


def split_first_token(model: ov.Model) -> int:
    """Multiplies the text's first token apart from the others; returns in how many layers.

    The layer keeps its name for the other tokens; the first one's is called so behind it.
    """
    text = model.input(_TEXT)
    layers = [one.get_node() for one in text.get_target_inputs()]
    layers = [one for one in layers if one.get_type_name() == "MatMul"]
    start, one, end = (opset.constant([value], ov.Type.i64) for value in (0, 1, 2**31 - 1))
    axis = opset.constant([1], ov.Type.i64)
    first = opset.slice(text.get_node(), start, one, one, axis)
    others = opset.slice(text.get_node(), one, end, one, axis)
    for layer in layers:
        readers = layer.output(0).get_target_inputs()
        weights, attributes = layer.input_value(1), layer.get_attributes()
        transposed = attributes["transpose_a"], attributes["transpose_b"]
        apart = opset.matmul(first, weights, *transposed)
        apart.set_friendly_name(layer.get_friendly_name() + FIRST)
        layer.input(0).replace_source_output(others.output(0))
        both = opset.concat([apart.output(0), layer.output(0)], 1)
        both.set_friendly_name(layer.get_friendly_name() + "/tokens")
        for reader in readers:
            reader.replace_source_output(both.output(0))
    model.validate_nodes_and_infer_types()
    return len(layers)
