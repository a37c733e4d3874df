"""Changes of a UNet's graph that are made when it is read; its file stays as it is."""

import numpy as np
import openvino as ov
from openvino import opset13 as opset

from sdcompress.runtime.errors import InputError

DEEP = "deep"


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
    place.replace_source_output(given.output(0))
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


def split_gates(model: ov.Model) -> int:
    """Computes gates and values of feed-forward layers apart, and returns of how many.

    One linear layer makes both, and is then split along its outputs, for which the CPU has no quick
    kernel. Two layers with half of the weights each give the same numbers.
    """
    splits = [op for op in model.get_ordered_ops() if op.get_type_name() == "VariadicSplit"]
    return sum(_split_gate(split) for split in splits)


def _split_gate(split: ov.Node) -> bool:
    """Replaces a split by two linear layers; False where it is of another kind."""
    bias = _input_node(split, 0)
    product = _input_node(bias, 0) if bias.get_type_name() == "Add" else bias
    if product.get_type_name() != "MatMul" or len(split.outputs()) != 2:
        return False
    attributes = product.get_attributes()
    widths = [output.partial_shape[-1] for output in split.outputs()]
    if attributes["transpose_a"] or not attributes["transpose_b"] or widths[0] != widths[1]:
        return False
    half = widths[0].get_length()
    source = product.input(0).get_source_output()
    for index, output in enumerate(split.outputs()):
        rows = slice(index * half, (index + 1) * half)
        weights = _rows(product.input(1).get_source_output(), rows, 0)
        offset = None if bias is product else _rows(bias.input(1).get_source_output(), rows, -1)
        if weights is None or (bias is not product and offset is None):
            return False
        values = opset.matmul(source, weights, False, True)
        values.set_friendly_name(f"{product.get_friendly_name()}/{index}")
        output.replace((values if offset is None else opset.add(values, offset)).output(0))
    return True


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
    for name, value in node.get_rt_info().items():
        made.get_rt_info()[name] = value
    return made.output(0)


def _constant_rows(node: ov.Node, rows: slice, axis: int) -> ov.Output | None:
    if node.get_element_type().bitwidth < 8:
        return None  # several values share a byte
    data = node.data
    if data.size == 1 or data.shape[axis] == 1:
        return node.output(0)
    if data.shape[axis] < rows.stop:
        return None
    part = data[rows] if axis == 0 else data[..., rows]
    return opset.constant(np.ascontiguousarray(part)).output(0)


def _input_node(node: ov.Node, index: int) -> ov.Node:
    return node.input(index).get_source_output().get_node()
