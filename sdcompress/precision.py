"""Reads from an IR which precision each layer has: its weights' type and its activations'."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openvino as ov

from sdcompress.errors import BundleError

# Where a weight constant may hide: decompression, fake quantization and layout changes.
_PASS_THROUGH = {
    "Convert",
    "FakeQuantize",
    "Multiply",
    "Reshape",
    "Subtract",
    "Transpose",
    "Unsqueeze",
}
_LAYER_TYPES = {"Convolution", "ConvolutionBackpropData", "GroupConvolution", "Gather", "MatMul"}
_SHORT = {
    "i8": "int8",
    "u8": "int8",
    "i4": "int4",
    "u4": "int4",
    "f16": "fp16",
    "bf16": "bf16",
    "f32": "fp32",
}


@dataclass(frozen=True)
class Layer:
    """One layer with weights. `precision` is for example fp16, int8 weights, int8, int4 weights."""

    name: str
    type: str
    precision: str
    parameters: int


def layers_of(model: ov.Model | Path) -> tuple[Layer, ...]:
    """Lists the layers with weights of an IR, in graph order.

    `int8` alone means weights and activations (W8A8); `int8 weights` keeps activations in floating
    point. Raises BundleError when the file is not an IR.
    """
    if isinstance(model, Path):
        try:
            model = ov.Core().read_model(model)
        except RuntimeError as error:
            raise BundleError(f"{model}: not a readable OpenVINO IR: {error}") from None
    found = (_layer(operation) for operation in model.get_ordered_ops())
    return tuple(layer for layer in found if layer)


def count_by_precision(layers: tuple[Layer, ...]) -> dict[str, int]:
    """Returns how many layers there are of each precision, the most frequent first."""
    return dict(Counter(layer.precision for layer in layers).most_common())


def _layer(operation: Any) -> Layer | None:
    kind = operation.get_type_name()
    if kind not in _LAYER_TYPES:
        return None
    ports = (0,) if kind == "Gather" else (1, 0)
    for port in ports:
        constant = weight_constant(operation.input_value(port).get_node())
        if constant is not None and len(constant.get_output_shape(0)) > 1:
            return _describe(operation, kind, port, constant)
    return None


def _describe(operation: Any, kind: str, port: int, constant: Any) -> Layer:
    weights = _SHORT.get(constant.get_element_type().get_type_name(), "other")
    if weights in ("fp32", "fp16") and _has_quantizer(operation.input_value(port).get_node()):
        weights = "int8"
    quantized = kind != "Gather" and _has_quantizer(operation.input_value(1 - port).get_node())
    is_integer = weights.startswith("int")
    precision = f"{weights} weights" if is_integer and not quantized else weights
    size = 1
    for axis in constant.get_output_shape(0):
        size *= axis
    return Layer(operation.get_friendly_name(), kind, precision, size)


def weight_constant(node: Any) -> Any | None:
    """Returns the constant behind a layer's weight input, or None if it is computed at run time."""
    while node.get_type_name() in _PASS_THROUGH:
        node = node.input_value(0).get_node()
    return node if node.get_type_name() == "Constant" else None


def _has_quantizer(node: Any) -> bool:
    """True when a FakeQuantize feeds this input, layout changes in between allowed."""
    while node.get_type_name() in ("Reshape", "Transpose", "Convert", "Unsqueeze"):
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "FakeQuantize")
