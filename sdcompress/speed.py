"""How fast this machine multiplies: what an estimate of time goes by."""

import time
from dataclasses import dataclass

import numpy as np
import openvino as ov
from openvino import opset13 as opset

from sdcompress.processor import executes_bf16

_MEASURING_SECONDS = 2.0


@dataclass(frozen=True)
class Speed:
    """Multiply-accumulates a second of one convolution on this machine, by precision.

    `native` is the precision that the device picks by itself, which has 16 bits where it is
    `narrow`.
    """

    f32: float
    native: float
    narrow: bool


def measure_speed(device: str = "CPU") -> Speed:
    """Times convolutions of 320 channels in 64 x 64, as diffusion UNets have them."""
    narrow = device != "CPU" or executes_bf16()
    return Speed(_macs_per_second(device, "f32"), _macs_per_second(device, None), narrow)


def _macs_per_second(device: str, precision: str | None) -> float:
    channels, size = 320, 64
    random = np.random.default_rng(0)
    picture = opset.parameter([2, channels, size, size], np.float32)
    values: ov.Output = picture.output(0)
    layers = 3
    for _ in range(layers):
        weights = random.standard_normal((channels, channels, 3, 3), dtype=np.float32) / 54
        values = opset.convolution(values, weights, [1, 1], [1, 1], [1, 1], [1, 1]).output(0)
    config = {"INFERENCE_PRECISION_HINT": precision} if precision else {}
    request = (
        ov.Core()
        .compile_model(ov.Model([values], [picture]), device, config)
        .create_infer_request()
    )
    feed = random.standard_normal((2, channels, size, size), dtype=np.float32)
    request.infer([feed])
    seconds = []
    until = time.perf_counter() + _MEASURING_SECONDS  # long enough to outlast a hiccup
    while time.perf_counter() < until:
        start = time.perf_counter()
        request.infer([feed])
        seconds.append(time.perf_counter() - start)
    return 2 * layers * 9 * (channels * size) ** 2 / min(seconds)
