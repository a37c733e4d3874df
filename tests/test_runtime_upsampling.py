"""Convolving before doubling gives the numbers of doubling before convolving."""

from pathlib import Path

import numpy as np
import openvino as ov
import pytest
import torch
from openvino import opset1
from openvino import opset13 as op
from torch.nn import functional

from sdcompress.runtime.upsampling import convolve_before_doubling

CORE = ov.Core()


def result(model: ov.Model, values: np.ndarray) -> np.ndarray:
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = CORE.compile_model(model, "CPU", options)
    return np.array(compiled([values])[0])


def kinds(model: ov.Model) -> list[str]:
    return [one.get_type_name() for one in model.get_ordered_ops()]


def doubled_model(
    weights: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    scales: tuple[float, float] = (2.0, 2.0),
    pads: int = 1,
    mode: str = "nearest",
    quantized: bool = False,
    read_twice: bool = False,
) -> ov.Model:
    values = op.parameter([1, weights.shape[1], -1, -1], np.float32)
    doubled = op.interpolate(
        values, np.float32(scales), mode=mode, shape_calculation_mode="scales",
        axes=np.array([2, 3]), coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )  # fmt: skip
    kernel: ov.Node = op.constant(weights)
    if weights.dtype == np.float16:
        kernel = op.convert(kernel, "f32")
    if quantized:
        kernel = op.fake_quantize(kernel, -1.0, 1.0, -1.0, 1.0, 255)
    found = op.convolution(doubled, kernel, [1, 1], [pads] * 2, [pads] * 2, [1, 1])
    if bias is not None:
        found = op.add(found, bias.reshape(1, -1, 1, 1))
    return ov.Model([found, doubled] if read_twice else [found], [values])


@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize("with_bias", [True, False])
def test_the_numbers_are_those_of_torch(kind: type, with_bias: bool) -> None:
    random = np.random.default_rng(0)
    weights = random.standard_normal((5, 3, 3, 3)).astype(kind)
    bias = random.standard_normal(5).astype(np.float32) if with_bias else None
    values = random.standard_normal((1, 3, 6, 9)).astype(np.float32)
    doubled = functional.interpolate(torch.from_numpy(values), scale_factor=2.0, mode="nearest")
    wanted = functional.conv2d(
        doubled,
        torch.from_numpy(weights.astype(np.float32)),
        None if bias is None else torch.from_numpy(bias),
        padding=1,
    ).numpy()
    model = doubled_model(weights, bias)
    assert convolve_before_doubling(model) == [4 * 16 * 5 * 3]
    assert "Interpolate" not in kinds(model)
    np.testing.assert_allclose(result(model, values), wanted, atol=1e-5)


@pytest.mark.parametrize(
    "different",
    [{"scales": (2.0, 3.0)}, {"pads": 0}, {"mode": "linear"}, {"quantized": True},
     {"read_twice": True}],
)  # fmt: skip
def test_what_is_not_of_this_kind_stays(different: dict) -> None:
    model = doubled_model(np.ones((2, 2, 3, 3), np.float32), **different)
    before = kinds(model)
    assert convolve_before_doubling(model) == []
    assert kinds(model) == before


def test_doubling_of_another_kind_stays() -> None:
    """OpenVINO's first Interpolate has other attributes."""
    values = op.parameter([1, 2, 4, 4], np.float32)
    doubled = opset1.interpolate(values, np.array([8, 8]), {"axes": [2, 3], "mode": "nearest"})
    weights = op.constant(np.ones((2, 2, 3, 3), np.float32))
    found = op.convolution(doubled, weights, [1, 1], [1, 1], [1, 1], [1, 1])
    assert convolve_before_doubling(ov.Model([found], [values])) == []


def test_weights_of_another_size_stay() -> None:
    assert convolve_before_doubling(doubled_model(np.ones((2, 2, 1, 1), np.float32))) == []


@pytest.mark.parametrize(("part", "layers"), [("vae_decoder", 3), ("tiny_decoder", 3)])
def test_decoders_give_the_same_pictures(bundle: Path, part: str, layers: int) -> None:
    latents = np.random.default_rng(1).standard_normal((1, 4, 16, 20)).astype(np.float32)
    plain = CORE.read_model(bundle / part / "openvino_model.xml")
    changed = plain.clone()
    assert len(convolve_before_doubling(changed)) == layers
    np.testing.assert_allclose(result(changed, latents), result(plain, latents), atol=1e-4)


def test_sizes_that_are_not_doubled_stay(baseline: Path) -> None:
    """The UNet's are enlarged to the size of a skip connection, which need not be even."""
    for side, layers in ((16, 3), (17, 0)):
        model = CORE.read_model(baseline / "unet" / "openvino_model.xml")
        assert convolve_before_doubling(model.clone()) == []  # nothing is known of the sizes
        model.reshape({"sample": [1, 4, side, side], "timestep": [1],
                       "encoder_hidden_states": [1, 77, -1]})  # fmt: skip
        assert len(convolve_before_doubling(model)) == layers
