"""Compression: each method does to the real UNet what it says; OpenVINO itself is the witness."""

import gc
from collections import Counter
from pathlib import Path

import nncf
import numpy as np
import openvino as ov
import pytest

from sdcompress.activations import Statistics, collect
from sdcompress.compress import CompressedIR, Recorded, compress, mix
from sdcompress.errors import CompressionError
from sdcompress.evaluate.sqnr import sqnr_db
from sdcompress.ir import IR_NAME, ir_bytes
from sdcompress.methods import Fp16, Hybrid, IgnoredScope, Int4Weights, Int8, Int8Weights, Mixed
from sdcompress.precision import count_by_precision, layers_of


@pytest.fixture(scope="module")
def inputs() -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    return [
        {
            "sample": random.standard_normal((1, 4, 16, 16), dtype=np.float32),
            "timestep": np.array([step]),
            "encoder_hidden_states": random.standard_normal((1, 77, 128), dtype=np.float32),
        }
        for step in (901, 601, 301, 1)
    ]


@pytest.fixture(scope="module")
def recorded(
    baseline: Path, inputs: list[dict[str, np.ndarray]], tmp_path_factory: pytest.TempPathFactory
) -> Recorded:
    folder = tmp_path_factory.mktemp("statistics")
    collect(baseline / "unet" / IR_NAME, None, inputs, folder, "f32")
    return Recorded(inputs, (folder,))


def executed_types(folder: Path, kind: str) -> Counter[str]:
    """How many executed layers of a kind take inputs of which precision, after compilation."""
    model = ov.Core().read_model(folder / IR_NAME)
    model.reshape(
        {"sample": [2, 4, 16, 16], "timestep": [2], "encoder_hidden_states": [2, 77, 128]}
    )
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    counts: Counter[str] = Counter()
    for node in compiled.get_runtime_model().get_ops():
        info = node.get_rt_info()
        if info["layerType"].astype(str) == kind:
            counts[info["runtimePrecision"].astype(str)] += 1
    return counts


def weighted_layers(folder: Path) -> int:
    """Counts convolutions and matrix products with a constant operand, straight from the graph."""
    constant_like = {"Constant", "Convert"}
    count = 0
    for node in ov.Core().read_model(folder / IR_NAME).get_ops():
        if node.get_type_name() in ("Convolution", "MatMul"):
            operands = [node.input_value(port).get_node() for port in (0, 1)]
            count += any(operand.get_type_name() in constant_like for operand in operands)
    return count


def test_every_layer_with_weights_is_found(baseline: Path) -> None:
    layers = layers_of(baseline / "unet" / IR_NAME)
    assert len(layers) == weighted_layers(baseline / "unet")
    assert {layer.precision for layer in layers} == {"fp32"}


def test_fp16_halves_the_weights(baseline: Path, tmp_path: Path) -> None:
    result = compress(
        baseline / "unet", Fp16(method="fp16"), tmp_path / "unet", None, has_vnni=True
    )
    weights = ((baseline / "unet").joinpath(IR_NAME).with_suffix(".bin")).stat().st_size
    assert (result.folder / IR_NAME).with_suffix(".bin").stat().st_size < 0.51 * weights
    assert set(result.layers_by_precision) == {"fp16"}


def test_int8_weights_leave_activations_alone(baseline: Path, tmp_path: Path) -> None:
    options = Int8Weights(method="int8_weights", convolutions=True)
    result = compress(baseline / "unet", options, tmp_path / "unet", None, has_vnni=True)
    assert set(result.layers_by_precision) == {"int8 weights"}
    types = {op.get_type_name() for op in ov.Core().read_model(result.folder / IR_NAME).get_ops()}
    assert "FakeQuantize" not in types


def test_convolutions_keep_16_bits_unless_asked_for(baseline: Path, tmp_path: Path) -> None:
    options = Int8Weights(method="int8_weights")
    result = compress(baseline / "unet", options, tmp_path / "unet", None, has_vnni=True)
    kinds = {(layer.type, layer.precision) for layer in layers_of(result.folder / IR_NAME)}
    assert kinds == {("Convolution", "fp16"), ("MatMul", "int8 weights")}


def test_int4_adapts_its_groups_to_odd_channel_counts(baseline: Path, tmp_path: Path) -> None:
    # 96 and 160 channels are no multiples of 64; NNCF's default would stop with an error here.
    options = Int4Weights(method="int4_weights", group_size=64)
    result = compress(baseline / "unet", options, tmp_path / "unet", None, has_vnni=True)
    assert result.layers_by_precision["int4 weights"] > 80
    assert set(result.layers_by_precision) <= {"int4 weights", "int8 weights", "fp16"}


@pytest.fixture(scope="module")
def quantized(
    baseline: Path, recorded: Recorded, tmp_path_factory: pytest.TempPathFactory
) -> CompressedIR:
    """The UNet in W8A8 but for its first layer, as a processor with VNNI takes it."""
    options = Int8(method="int8", ignored=IgnoredScope(patterns=[".*conv_in.*"]))
    folder = tmp_path_factory.mktemp("int8") / "unet"
    return compress(baseline / "unet", options, folder, recorded, has_vnni=True)


def test_int8_quantizes_weights_and_activations(baseline: Path, quantized: CompressedIR) -> None:
    total = weighted_layers(baseline / "unet")
    assert quantized.layers_by_precision["int8"] > 0.9 * total
    assert executed_types(quantized.folder, "Convolution").keys() & {"i8", "u8"}
    assert quantized.bytes == ir_bytes(quantized.folder)


def test_an_ignored_layer_stays_in_floating_point(quantized: CompressedIR) -> None:
    precisions = {layer.name: layer.precision for layer in layers_of(quantized.folder / IR_NAME)}
    assert {p for name, p in precisions.items() if "conv_in" in name} <= {"fp16", "fp32"}
    assert any("conv_in" in name for name in precisions)


def test_without_vnni_weights_keep_to_half_their_range(
    baseline: Path, tmp_path: Path, quantized: CompressedIR, recorded: Recorded
) -> None:
    options = Int8(method="int8", bias_correction="none")
    cautious = compress(baseline / "unet", options, tmp_path / "unet", recorded, has_vnni=False)
    assert largest_int8_weight(quantized.folder) >= 127
    assert largest_int8_weight(cautious.folder) <= 64


def largest_int8_weight(folder: Path) -> int:
    return max(
        int(np.abs(op.data.astype(np.int16)).max())
        for op in ov.Core().read_model(folder / IR_NAME).get_ops()
        if op.get_type_name() == "Constant" and op.get_element_type() == ov.Type.i8
    )


def test_the_result_is_that_of_nncf_on_the_same_inputs(
    baseline: Path, inputs: list[dict[str, np.ndarray]], quantized: CompressedIR
) -> None:
    theirs = nncf.quantize(
        ov.Core().read_model(baseline / "unet" / IR_NAME),
        nncf.Dataset(inputs),
        preset=nncf.QuantizationPreset.MIXED,
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(inputs),
        ignored_scope=nncf.IgnoredScope(patterns=[".*conv_in.*"]),
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            overflow_fix=nncf.OverflowFix.DISABLE,
            smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=0.95, convolution=-1.0),
        ),
    )
    expected, found = ranges_of(theirs), ranges_of(ov.Core().read_model(quantized.folder / IR_NAME))
    assert found.keys() == expected.keys()
    assert len(found) > 150
    for name, limits in found.items():
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(limits / scale, expected[name] / scale, atol=1e-5)
    ours = ov.Core().read_model(quantized.folder / IR_NAME)
    expected_weights, found_weights = int8_weights(theirs), int8_weights(ours)
    assert found_weights.keys() == expected_weights.keys()
    for name, values in found_weights.items():
        distance = np.abs(values.astype(int) - expected_weights[name])
        assert distance.max() <= 1
        assert (distance > 0).mean() < 1e-3  # smoothing by scales that differ by 1e-6
    feed = inputs[1] | {"timestep": inputs[1]["timestep"].reshape(())}
    outputs = [
        ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(feed)[0]
        for model in (theirs, ours)
    ]
    assert sqnr_db(*outputs) > 40  # the file rounds floating-point constants to 16 bits


def int8_weights(model: ov.Model) -> dict[str, np.ndarray]:
    """8-bit constants by the name of the layer that they end in."""
    found = {}
    for op in model.get_ops():
        if op.get_type_name() == "Constant" and op.get_element_type() == ov.Type.i8:
            reader = op
            while reader.get_type_name() not in ("Convolution", "MatMul", "Gather"):
                (port,) = reader.output(0).get_target_inputs()
                reader = port.get_node()
            found[reader.get_friendly_name()] = op.data
    return found


def ranges_of(model: ov.Model) -> dict[str, np.ndarray]:
    """The lower and upper limit of every activation quantizer."""
    return {
        op.get_friendly_name(): np.array(
            [op.input_value(port).get_node().get_data(dtype=np.float32).item() for port in (1, 2)]
        )
        for op in model.get_ops()
        if op.get_type_name() == "FakeQuantize"
    }


def test_hybrid_quantizes_activations_of_convolutions_only(
    baseline: Path, tmp_path: Path, recorded: Recorded
) -> None:
    result = compress(
        baseline / "unet",
        Hybrid(method="hybrid", bias_correction="none"),
        tmp_path / "unet",
        recorded,
        has_vnni=True,
    )
    by_type = {
        kind: count_by_precision(
            tuple(layer for layer in layers_of(result.folder / IR_NAME) if layer.type == kind)
        )
        for kind in ("Convolution", "MatMul")
    }
    assert set(by_type["Convolution"]) == {"int8"}
    assert set(by_type["MatMul"]) == {"int8 weights"}


def test_a_pattern_that_matches_nothing_is_a_clear_error(
    baseline: Path, tmp_path: Path, recorded: Recorded
) -> None:
    options = Int8(method="int8", ignored=IgnoredScope(names=["no_such_layer"]))
    with pytest.raises(CompressionError, match="no_such_layer"):
        compress(baseline / "unet", options, tmp_path / "x", recorded, has_vnni=True)
    assert not (tmp_path / "x").exists()
    assert gc.isenabled()  # NNCF works without it, and was interrupted


def test_missing_calibration_inputs_are_a_clear_error(baseline: Path, tmp_path: Path) -> None:
    with pytest.raises(CompressionError, match="needs calibration inputs"):
        compress(baseline / "unet", Int8(method="int8"), tmp_path / "x", None, has_vnni=True)


def test_the_bundle_keeps_its_promise_of_size(bundle: Path, baseline: Path) -> None:
    assert ir_bytes(bundle / "unet") <= 0.30 * ir_bytes(baseline / "unet")


def answer(folder: Path, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """What OpenVINO makes of an IR for some inputs, in float32."""
    model = ov.Core().read_model(folder / IR_NAME)
    model.reshape({name: list(values.shape) for name, values in inputs.items()})
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.array(compiled(inputs)[0])


def test_all_layers_of_one_variant_are_that_variant(
    baseline: Path, quantized: CompressedIR, inputs: list[dict[str, np.ndarray]], tmp_path: Path
) -> None:
    options = Mixed(
        method="mixed", variants={"w8a8": Int8(method="int8")}, layers={}, otherwise="w8a8"
    )
    result = mix(baseline / "unet", {"w8a8": quantized.folder}, options, tmp_path / "unet")
    assert result.layers_by_precision == quantized.layers_by_precision
    assert np.array_equal(answer(result.folder, inputs[0]), answer(quantized.folder, inputs[0]))


@pytest.fixture(scope="module")
def weights8(baseline: Path, tmp_path_factory: pytest.TempPathFactory) -> CompressedIR:
    options = Int8Weights(method="int8_weights", convolutions=True)
    folder = tmp_path_factory.mktemp("weights8") / "unet"
    return compress(baseline / "unet", options, folder, None, has_vnni=True)


def test_each_layer_is_of_the_first_pattern_that_its_name_has(
    baseline: Path, quantized: CompressedIR, weights8: CompressedIR, tmp_path: Path
) -> None:
    options = Mixed(
        method="mixed",
        variants={"w8a8": Int8(method="int8"), "w8": Int8Weights(method="int8_weights")},
        layers={r"down_blocks\.0.*attn2": "fp16", "attn": "w8", r"ff\.": "fp16"},
        otherwise="w8a8",
    )
    variants = {"w8a8": quantized.folder, "w8": weights8.folder}
    result = mix(baseline / "unet", variants, options, tmp_path / "unet")
    found = {layer.name: layer.precision for layer in layers_of(result.folder / IR_NAME)}
    for name, precision in found.items():
        if "ff." in name or ("down_blocks.0" in name and "attn2" in name) or "conv_in" in name:
            assert precision == "fp16", name
        elif "attn" in name and "attentions" in name and ("attn1" in name or "attn2" in name):
            assert precision == "int8 weights", name
        else:
            assert precision == "int8", name
    assert len(found) == weighted_layers(baseline / "unet")


def test_a_layer_reads_what_the_other_variant_returns(
    baseline: Path,
    quantized: CompressedIR,
    weights8: CompressedIR,
    inputs: list[dict[str, np.ndarray]],
    tmp_path: Path,
) -> None:
    """The error of two halves, each of another variant, is more than that of either half."""
    expected = answer(baseline / "unet", inputs[1])
    errors = []
    for number, (first, second) in enumerate([("w8a8", "fp16"), ("fp16", "w8"), ("w8a8", "w8")]):
        chosen = {"w8a8": quantized.folder, "w8": weights8.folder}
        used = {name: folder for name, folder in chosen.items() if name in (first, second)}
        options = Mixed(
            method="mixed",
            variants={name: Int8Weights(method="int8_weights") for name in used},
            layers={"down_blocks|mid_block": first},
            otherwise=second,
        )
        result = mix(baseline / "unet", used, options, tmp_path / f"{number}")
        errors.append(sqnr_db(expected, answer(result.folder, inputs[1])))
    assert errors[2] < min(errors[:2])


def test_a_pattern_that_no_layer_has_is_refused(
    baseline: Path, quantized: CompressedIR, tmp_path: Path
) -> None:
    options = Mixed(
        method="mixed",
        variants={"w8a8": Int8(method="int8")},
        layers={"no_such_layer": "fp16"},
        otherwise="w8a8",
    )
    with pytest.raises(CompressionError, match="no layer's name has 'no_such_layer'"):
        mix(baseline / "unet", {"w8a8": quantized.folder}, options, tmp_path / "unet")


# What ranges do not depend on takes two thirds of the time.
BARE = {"method": "int8", "smooth_quant_alpha": None, "bias_correction": "none"}
FIRST_CONV = "__module.down_blocks.0.resnets.0.conv1/aten::_convolution/Convolution"


class Stepped(list[dict[str, np.ndarray]]):
    """Recorded inputs that tell their timesteps: two of each."""

    def timesteps(self) -> np.ndarray:
        return np.repeat([901.0, 301.0], 2)


def input_range(folder: Path, layer: str) -> tuple[float, float]:
    """The range of the quantizer before a layer, as it is stored."""
    (node,) = (
        one
        for one in ov.Core().read_model(folder / IR_NAME).get_ops()
        if one.get_friendly_name() == layer
    )
    quantizer = node.input_value(0).get_node()
    assert quantizer.get_type_name() == "FakeQuantize"
    low, high = (quantizer.input_value(port).get_node().data.min() for port in (1, 2))
    return float(low), float(high)


def test_ranges_are_put_together_as_asked_for(
    baseline: Path, inputs: list[dict[str, np.ndarray]], recorded: Recorded, tmp_path: Path
) -> None:
    statistics = Statistics(*recorded.statistics)
    node = next(name for name, _ in statistics.names() if "down_blocks.0.resnets.0.nonlin" in name)
    tops = np.array([statistics.read(node, 0, item)[0][1].max() for item in range(4)])
    by_step = tops.reshape(2, 2).max(1)
    expected = {
        "mean": tops.mean(),
        "median": np.median(tops),
        "widest": tops.max(),
        "narrowest_step": by_step.min(),
    }
    given = Recorded(Stepped(inputs), recorded.statistics)
    for ranges, top in expected.items():
        options = Int8.model_validate(BARE | {"ranges": ranges})
        folder = compress(baseline / "unet", options, tmp_path / ranges, given, has_vnni=True)
        _, high = input_range(folder.folder, FIRST_CONV)
        assert high == pytest.approx(top, rel=0.02), ranges  # zero must be a level
    assert expected["narrowest_step"] < expected["widest"]


@pytest.mark.parametrize("ranges", ["percentile", "mse"])
def test_nncf_finds_ranges_on_all_values(
    baseline: Path,
    inputs: list[dict[str, np.ndarray]],
    recorded: Recorded,
    tmp_path: Path,
    ranges: str,
) -> None:
    options = Int8.model_validate(BARE | {"ranges": ranges})
    statistics = Statistics(*recorded.statistics)
    node = next(name for name, _ in statistics.names() if "down_blocks.0.resnets.0.nonlin" in name)
    widest = max(statistics.read(node, 0, item)[0][1].max() for item in range(4))
    folder = compress(baseline / "unet", options, tmp_path / ranges, recorded, has_vnni=True)
    _, high = input_range(folder.folder, FIRST_CONV)
    assert 0.1 * widest < high < 0.98 * widest  # outliers are cut
