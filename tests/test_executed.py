"""What a device makes of compressed layers, told from the executed graph."""

import shutil
import time
from pathlib import Path

import openvino as ov
import pytest
from click.testing import CliRunner

from sdcompress.cli import main
from sdcompress.compress import compress
from sdcompress.executed import _compiled, by_kernel, executed_layers, times_of_compiled
from sdcompress.ir import IR_NAME
from sdcompress.methods import Int8Weights


def test_quantized_layers_run_in_integers(bundle: Path) -> None:
    layers = executed_layers(bundle)["unet"]
    integers = [one for one in layers if one.weights == "i8" and one.activations in ("u8", "i8")]
    assert len(integers) > 150
    (first,) = (one for one in layers if "conv_in" in one.name)
    # 16 bits in the file; the kernel's name ends with the precision that it multiplies in.
    assert first.weights == first.kernel.split("_")[-1]


def unsupported_by_amx(xml: Path) -> set[str]:
    """Linear layers that OpenVINO unpacks where it multiplies bf16 with AMX: none of SD 2.1's.

    As its CPU plugin says in `FullyConnected::isSupportedCompressedOperation`.
    """
    found = set()
    for node in ov.Core().read_model(xml).get_ordered_ops():
        if node.get_type_name() == "MatMul" and "linear" in node.get_friendly_name():
            outputs, inputs = (size.get_length() for size in node.input(1).get_partial_shape())
            if max(inputs, outputs) <= 512 and inputs % 32:
                found.add(node.get_friendly_name().split("/")[0])
    return found


def test_the_cpu_unpacks_compressed_convolutions_but_not_linear_layers(
    bundle: Path, baseline: Path, tmp_path: Path
) -> None:
    """Why int8_weights leaves convolutions alone: in memory they are as large as without."""
    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    shutil.rmtree(folder / "unet")
    (folder / "manifest.json").unlink()
    options = Int8Weights(method="int8_weights", convolutions=True)
    compress(baseline / "unet", options, folder / "unet", None, has_vnni=True)
    layers = executed_layers(folder)["unet"]
    linear = [one for one in layers if one.type == "FullyConnected"]
    unpacked = {one.name.split("/")[0] for one in linear if one.weights != "u8"}
    assert unpacked in (set(), unsupported_by_amx(folder / "unet" / IR_NAME))
    assert len(linear) > 10 * len(unpacked)
    convolutions = {one.weights for one in layers if one.type == "Convolution"}
    assert not convolutions & {"u8", "i8", None}
    said = "compressed convolutions have floating-point inputs"
    assert said in CliRunner().invoke(main, ["inspect", str(folder)]).output
    assert said not in CliRunner().invoke(main, ["inspect", str(bundle)]).output


def test_inspect_shows_it(bundle: Path) -> None:
    done = CliRunner().invoke(main, ["inspect", str(bundle), "--executed", "--layers"])
    assert done.exit_code == 0, done.output
    assert "unet on CPU" in done.output
    assert "FullyConnected" in done.output
    assert "conv_in" in done.output


def test_times_add_up_to_an_inference(bundle: Path) -> None:
    """Against a clock around it; kernels are those of the executed graph."""
    compiled = _compiled(bundle, "CPU", None, profiling=True)["unet"]
    start = time.perf_counter()
    kernels = by_kernel(times_of_compiled(compiled))
    around = time.perf_counter() - start
    request = compiled.create_infer_request()
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        request.infer()
        seconds.append(time.perf_counter() - start)
    total = sum(one.seconds for one in kernels)
    # The quickest of three took no more than a third of them, whatever else runs on the machine,
    # and layers take most of an inference.
    assert 0.5 * min(seconds) < total < around / 3
    assert kernels[0].seconds == max(one.seconds for one in kernels) > 0
    executed = {one.kernel for one in executed_layers(bundle)["unet"]}
    assert executed <= {one.kernel for one in kernels}


def test_inspect_shows_times(bundle: Path) -> None:
    done = CliRunner().invoke(main, ["inspect", str(bundle), "--timed"])
    assert done.exit_code == 0, done.output
    for name in ("text_encoder", "unet", "vae_decoder"):
        assert f"{name} on CPU: " in done.output
    shares = [
        float(line.split()[2].rstrip("%")) for line in done.output.splitlines() if "%" in line
    ]
    assert sum(shares) == pytest.approx(300, abs=10)


def test_inspect_shows_layer_kernel_precision_and_time(bundle: Path) -> None:
    done = CliRunner().invoke(
        main, ["inspect", str(bundle), "--timed", "--layers", "--precision", "f32"]
    )
    assert done.exit_code == 0, done.output
    lines = [line for line in done.output.splitlines() if " Convolution " in line]
    (first,) = (line for line in lines if " __module.conv_in/" in line)
    took, unit, _, precision, _, kernel, _ = first.split()
    assert 0 < float(took) < 1000
    assert unit == "ms"
    assert precision == "f32"  # the first convolution is not quantized
    assert kernel.endswith(f"_{precision}")
    assert sum(" u8 " in line or " i8 " in line for line in lines) > 20


@pytest.mark.parametrize(
    ("options", "words"),
    [(("--device", "XPU"), "XPU"), (("--peer-scheduler", "ddim"), "exclude each other")],
)
def test_what_cannot_be_shown_is_refused(
    bundle: Path, options: tuple[str, ...], words: str
) -> None:
    done = CliRunner().invoke(main, ["inspect", str(bundle), "--executed", *options])
    assert done.exit_code == 2
    assert words in done.output
