"""What a device makes of the UNets that benchmarks/compression.py left: ``make bench-compress``.

Each variant runs in a process of its own, batch 2 at the native size: seconds a step, memory, how
many layers keep compressed weights, and the SQNR of its output against the float32 execution of the
baseline, on the trajectory of a prompt that nothing was calibrated on. Prints two Markdown tables.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from sdcompress.activations import Statistics
from sdcompress.evaluate.sqnr import Trajectory, UnetCall, sqnr_db
from sdcompress.executed import layers_of_compiled
from sdcompress.ir import IR_NAME, ir_bytes
from sdcompress.memory import MemoryWatch
from sdcompress.processor import processor_brand

# Name, folder, execution precision (None: the device's choice).
VARIANTS = (
    ("16-bit weights, executed in f32", "ir/unet", "f32"),
    ("16-bit weights", "ir/unet", None),
    ("int8 weights, all layers", "int8_weights", None),
    ("int8 weights, linear layers", "int8_linear", None),
    ("hybrid", "hybrid", None),
    ("W8A8", "int8", None),
    ("W8A8, ranges in f32", "int8_f32", None),
    ("`sd21_base_int8`", "int8_recipe", None),
)
TIMED_STEPS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks/sd21"))
    parser.add_argument("--child", nargs=2, metavar=("FOLDER", "PRECISION"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(_run(options.work, *options.child)))
        return
    work = options.work.resolve()
    tasks = Path(__file__).with_name("compression_tasks.py")
    subprocess.run([sys.executable, str(tasks), str(work), "calls"], check=True)
    measured = {name: _measure(work, folder, kind or "") for name, folder, kind in VARIANTS}
    print(f"\n{processor_brand()}, {os.cpu_count()} cores, {platform.platform()}; UNet, batch 2\n")
    print("| UNet | file | step | resident | anonymous | linear layers | convolutions |")
    print("|---|---|---|---|---|---|---|")
    base = measured["16-bit weights"]
    for (name, folder, _), figures in zip(VARIANTS, measured.values(), strict=True):
        size = ir_bytes(work / folder) / 1e6
        step, memory = figures["step_seconds"], figures["peak_rss_bytes"]
        print(
            f"| {name} | {size:.0f} MB | {step:.2f} s (x {step / base['step_seconds']:.2f}) | "
            f"{memory / 1e9:.2f} GB (x {memory / base['peak_rss_bytes']:.2f}) | "
            f"{figures['peak_anonymous_bytes'] / 1e9:.2f} GB | {figures['linear']} | "
            f"{figures['convolution']} |"
        )
    _print_sqnr(measured)
    _print_ranges(work)


def _measure(work: Path, folder: str, precision: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--work", str(work), "--child", folder, precision]
    watch = MemoryWatch()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with watch.over(process.pid):
        output, _ = process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"{folder} failed with exit code {process.returncode}")
    figures: dict[str, Any] = json.loads(output.splitlines()[-1])
    return figures | {
        "peak_rss_bytes": watch.peak_rss_bytes,
        "peak_anonymous_bytes": watch.peak_anonymous_bytes,
    }


def _run(work: Path, folder: str, precision: str) -> dict[str, Any]:
    """Times steps of two branches and compares outputs with those of the baseline in float32."""
    calls = Trajectory.load(work / "calls.npz").calls
    feeds = [_feed(call) for call in calls]
    model = ov.Core().read_model(work / folder / IR_NAME)
    model.reshape({name: values.shape for name, values in feeds[0].items()})
    config = {"INFERENCE_PRECISION_HINT": precision} if precision else {}
    compiled = ov.Core().compile_model(model, "CPU", config)
    del model
    request = compiled.create_infer_request()
    outputs, seconds = [], []
    for feed in feeds:
        start = time.perf_counter()
        request.infer(feed, share_inputs=True)
        seconds.append(time.perf_counter() - start)
        outputs.append(request.get_output_tensor(0).data.copy())
    sqnr = {
        round(call.timestep): sqnr_db(call.noise, found)
        for call, found in zip(calls, outputs, strict=True)
    }
    layers = layers_of_compiled(compiled)
    return {
        "step_seconds": statistics.median(seconds[1 : TIMED_STEPS + 1]),
        "sqnr": sqnr,
        "linear": _weights(layers, "FullyConnected"),
        "convolution": _weights(layers, "Convolution"),
    }


def _weights(layers: Any, kind: str) -> str:
    found = [one.weights for one in layers if one.type == kind]
    return ", ".join(f"{found.count(name)} x {name}" for name in sorted(set(found)))


def _feed(call: UnetCall) -> dict[str, Any]:
    """Both branches, under the names of the IR's inputs."""
    return {
        "sample": call.sample,
        "timestep": np.full(len(call.sample), round(call.timestep)),
        "encoder_hidden_states": call.encoder_hidden_states,
    }


def _print_sqnr(measured: dict[str, dict[str, Any]]) -> None:
    compared = {name: one["sqnr"] for name, one in measured.items() if name != VARIANTS[0][0]}
    print("\nSQNR of the UNet's output in dB; 16-bit weights show the floor of the execution\n")
    print("| timestep | " + " | ".join(compared) + " |")
    print("|---" * (len(compared) + 1) + "|")
    for timestep in next(iter(compared.values())):
        row = " | ".join(f"{values[timestep]:.1f}" for values in compared.values())
        print(f"| {timestep} | {row} |")


def _print_ranges(work: Path) -> None:
    """By how much ranges differ when they are collected in BF16, as a share of the range."""
    exact, rounded = Statistics(work / "ranges_f32"), Statistics(work / "ranges")
    differences = []
    for node, port in exact.names():
        spans = []
        for statistics_ in (exact, rounded):
            figures = [statistics_.read(node, port, item)[0] for item in range(exact.items)]
            spans.append(
                (np.mean([f[0].min() for f in figures]), np.mean([f[1].max() for f in figures]))
            )
        (low, high), (low16, high16) = spans
        differences.append(max(abs(low16 - low), abs(high16 - high)) / max(high - low, 1e-9))
    choice = json.loads((work / "ranges/precision.json").read_text())
    print(
        f"\nOn the items compared beforehand ranges moved by {100 * choice['largest_shift']:.2f} % "
        f"at most, so {choice['precision']} was chosen. Averaged over all {exact.items} inputs, "
        f"the ranges of {len(differences)} activations then differ from those in f32 by "
        f"{100 * np.median(differences):.2f} % (median), at most by {100 * max(differences):.2f} %."
    )


if __name__ == "__main__":
    main()
