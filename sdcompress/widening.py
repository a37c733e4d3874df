"""Lets a model with 16-bit weights be traced for float32 execution without a float32 copy of it.

Each layer's big weight stays as it is, in the mapped checkpoint, and the traced graph says
"16-bit constant, then convert, then multiply", which OpenVINO keeps as a compressed constant.
Small parameters (biases, normalization) become float32 at once: a convolution's bias behind a
conversion would not be recognized as one by compression.
"""

from types import MethodType
from typing import Any


def widen(model: Any) -> None:
    """Makes a torch model of 16-bit weights compute in float32, in place.

    Linear, convolution and embedding layers keep their weights and widen them when called.
    """
    import torch

    for module in model.modules():
        forward = _FORWARDS.get(type(module).__name__)
        kept = module.weight if forward is not None else None
        for parameter in module.parameters(recurse=False):
            if parameter is not kept:
                parameter.data = parameter.data.float()
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point():
                module.register_buffer(name, buffer.float(), persistent=False)
        if forward is not None and kept is not None and kept.dtype != torch.float32:
            module.forward = MethodType(forward, module)


def _linear(module: Any, values: Any) -> Any:
    import torch

    return torch.nn.functional.linear(values, module.weight.to(torch.float32), module.bias)


def _convolution(module: Any, values: Any) -> Any:
    import torch

    return torch.nn.functional.conv2d(
        values,
        module.weight.to(torch.float32),
        module.bias,
        module.stride,
        module.padding,
        module.dilation,
        module.groups,
    )


def _embedding(module: Any, ids: Any) -> Any:
    import torch

    return torch.nn.functional.embedding(ids, module.weight).to(torch.float32)


_FORWARDS = {"Linear": _linear, "Conv2d": _convolution, "Embedding": _embedding}
