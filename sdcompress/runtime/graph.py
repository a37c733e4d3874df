"""Changes of a UNet's graph that are made when it is read; its file stays as it is."""

from math import prod

import numpy as np
import openvino as ov
from openvino import opset13 as opset

from sdcompress.runtime.errors import InputError

DEEP = "deep"
# Of constants that are cut up. Numpy knows no others of OpenVINO's, and weights of 16 bits are
# kept so by marks on the graph, which a copy would lose.
_PLAIN_TYPES = (ov.Type.f32, ov.Type.i8, ov.Type.u8)


def offer_deep(model: ov.Model, depth: int) -> None:
    """Adds an output, what comes up from below to the outermost `depth` skip connections.

    Float32 [b, c, h, w], after the prediction. Raises InputError if there are not so many.
    """
    source = _from_below(model, depth).get_source_output()
    source.get_tensor().add_names({DEEP})
    model.add_results([opset.result(source)])


def take_deep(model: ov.Model, depth: int) -> None:
    """Adds an input in the place of what `offer_deep` offers; the layers below are left out.

    Raises InputError if there are not so many skip connections.
    """
    place = _from_below(model, depth)
    source = place.get_source_output()
    channels = source.partial_shape[1]
    given = opset.parameter(
        ov.PartialShape([-1, channels, -1, -1]), source.get_element_type(), DEEP
    )
    given.output(0).get_tensor().set_names({DEEP})
    for reader in source.get_target_inputs():  # the joint, and a convolution that was split
        reader.replace_source_output(given.output(0))
    model.add_parameters([given])
    model.validate_nodes_and_infer_types()


def _from_below(model: ov.Model, depth: int) -> ov.Input:
    """Where what comes from below enters the part of the graph with so many skip connections.

    A quantizer in between belongs to that part.
    """
    joints = [op for op in model.get_ordered_ops() if _is_joint(op)]
    if not 1 <= depth <= len(joints):
        raise InputError(
            f"cache_depth is {depth}; this UNet has {len(joints)} skip connections, so it can be "
            f"1 to {len(joints)}."
        )
    place = joints[-depth].input(0)
    while place.get_source_output().get_node().get_type_name() == "FakeQuantize":
        place = place.get_source_output().get_node().input(0)
    return place


def _is_joint(op: ov.Node) -> bool:
    """Whether a layer puts what comes from below and a skip connection side by side."""
    if op.get_type_name() != "Concat" or op.get_input_size() != 2:
        return False
    rank = op.output(0).partial_shape.rank
    return bool(rank == ov.Dimension(4) and op.get_attributes()["axis"] == 1)


def thin_attention(model: ov.Model, stride: int) -> int:
    """Takes keys and values of self-attention from every `stride`-th row and column of positions.

    Where attention is over all cells of the latents, whose shapes must be fixed, and nowhere else:
    neighbours are alike there, and it takes most of the time (token downsampling,
    arXiv:2402.13573). Returns of how many layers.
    """
    rows, columns = (model.input("sample").shape[axis] for axis in (2, 3))
    cells = np.arange(rows * columns).reshape(rows, columns)
    kept = opset.constant(cells[::stride, ::stride].reshape(-1))
    found = [op for op in model.get_ordered_ops() if _attends_over(op, cells.size)]
    for attention in found:
        for index in (1, 2):
            place = _linear_input(attention.input(index))
            chosen = opset.gather(place.get_source_output(), kept, opset.constant(1))
            place.replace_source_output(chosen.output(0))
    model.validate_nodes_and_infer_types()
    return len(found)


def _attends_over(op: ov.Node, tokens: int) -> bool:
    if op.get_type_name() != "ScaledDotProductAttention":
        return False
    shapes = [op.input(index).get_partial_shape() for index in (0, 1)]
    return all(shape.is_static and shape[2].get_length() == tokens for shape in shapes)


def _linear_input(place: ov.Input) -> ov.Input:
    """What the linear layer reads that an attention's input comes from."""
    while (node := place.get_source_output().get_node()).get_input_size():
        place = node.input(0)
        if node.get_type_name() == "MatMul":
            return place
    raise InputError("attention_stride: keys or values of an attention come from no linear layer.")


def split_gates(model: ov.Model) -> list[int]:
    """Computes gates and values of feed-forward layers apart; returns the bytes copied for each.

    One linear layer makes both, and is then split along its outputs, for which the CPU has no quick
    kernel. Two layers with half of the weights each give the same numbers.
    """
    splits = [op for op in model.get_ordered_ops() if op.get_type_name() == "VariadicSplit"]
    found = [_split_gate(split) for split in splits]
    return [one for one in found if one]


def _split_gate(split: ov.Node) -> int:
    """Replaces a split by two linear layers; 0 where it is of another kind, else bytes copied."""
    bias = _input_node(split, 0)
    product = _input_node(bias, 0) if bias.get_type_name() == "Add" else bias
    if product.get_type_name() != "MatMul" or len(split.outputs()) != 2:
        return 0
    attributes = product.get_attributes()
    widths = [output.partial_shape[-1] for output in split.outputs()]
    if attributes["transpose_a"] or not attributes["transpose_b"] or widths[0].is_dynamic:
        return 0
    half = widths[0].get_length()
    halves = []
    for index in (0, 1):
        rows = slice(index * half, (index + 1) * half)
        weights = _rows(product.input(1).get_source_output(), rows, 0)
        if widths[index] != widths[0] or weights is None:
            return 0
        values = opset.matmul(product.input(0).get_source_output(), weights, False, True)
        values.set_friendly_name(f"{product.get_friendly_name()}/{index}")
        if bias is not product:
            offset = _rows(bias.input(1).get_source_output(), rows, -1)
            if offset is None:
                return 0
            values = opset.add(values, offset)
        halves.append(values)
    for output, values in zip(split.outputs(), halves, strict=True):
        output.replace(values.output(0))
    weights_type = _stored_type(product.input(1).get_source_output().get_node())
    shape = product.input(1).get_partial_shape().to_shape()
    return int(prod(shape) * weights_type.size)


def _stored_type(node: ov.Node) -> ov.Type:
    """Of the constant that weights are made of."""
    while node.get_input_size():
        node = _input_node(node, 0)
    return node.get_element_type()


def _rows(values: ov.Output, rows: slice, axis: int) -> ov.Output | None:
    """Some rows of what is made of constants, as a like graph of parts of them.

    None where that cannot be.
    """
    node = values.get_node()
    kind = node.get_type_name()
    if kind == "Constant":
        return _constant_rows(node, rows, axis)
    parts = [_rows(node.input(index).get_source_output(), rows, axis)
             for index in range(node.get_input_size())]  # fmt: skip
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    if kind == "Convert":
        made = opset.convert(known[0], node.get_element_type().get_type_name())
    elif kind == "Multiply":
        made = opset.multiply(*known)
    elif kind == "Subtract":
        made = opset.subtract(*known)
    else:
        return None
    return made.output(0)


def _constant_rows(node: ov.Node, rows: slice, axis: int) -> ov.Output | None:
    if node.get_element_type() not in _PLAIN_TYPES:
        return None
    data = node.data
    if data.size == 1 or data.shape[axis] == 1:
        return node.output(0)
    if data.shape[axis] < rows.stop:
        return None
    part = data[rows] if axis == 0 else data[..., rows]
    return opset.constant(np.ascontiguousarray(part)).output(0)


def _input_node(node: ov.Node, index: int) -> ov.Node:
    return node.input(index).get_source_output().get_node()
