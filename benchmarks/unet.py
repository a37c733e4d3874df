"""Where a call of the full-size UNet spends its time, and what changes of how it is asked do to it.

``make bench-unet``, after ``make bench-preflight``. All ways to ask are compiled at the same time
and take turns, because the machine's speed changes from minute to minute. Prints one Markdown table
of them, one of the shares of the network's parts, and one of the time by type of layer, before
and after. About seven minutes on two cores.
"""

import argparse
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import openvino as ov
from openvino import opset13 as opset
from runtime import converted

from sdcompress.executed import LayerTime, noise_for, quickest_profile, times_of_compiled
from sdcompress.processor import describe_machine
from sdcompress.runtime import Economy, Pipeline, Settings
from sdcompress.runtime.economy import IN_TURN, SIDE_BY_SIDE, TOGETHER

TURNS = 7
SHAPES = {"sample": [2, 4, 64, 64], "timestep": [2], "encoder_hidden_states": [2, 77, 1024]}
LEAST_SECONDS = 0.005
MULTIPLYING = ("Convolution", "FullyConnected", "MatMul", "ScaledDot", "Subgraph")
PARTS = {
    "self-attention: products and softmax": r"attn1/",
    "of it, over all 4096 cells": r"(down_blocks\.0|up_blocks\.3)\.attentions.*attn1/",
    "self-attention: linear layers": r"attn1\.to_",
    "cross-attention: keys and values of the text": r"attn2\.to_[kv]",
    "cross-attention: all else": r"attn2(/|\.to_[qo])",
    "feed-forward layers": r"\.ff\.",
    "convolutions": r"conv",
    "time embedding": r"time_emb",
    "normalization, as layers of its own": r"norm",
}


@dataclass(frozen=True)
class Way:
    """A way to ask for both branches of guidance."""

    name: str
    economy: Economy
    settings: Settings
    static: bool = True


WAYS = (
    Way("in one batch", Economy(TOGETHER), Settings()),
    Way("in one batch, compiled for all sizes", Economy(TOGETHER), Settings(), static=False),
    Way("one after the other", Economy(IN_TURN), Settings()),
    Way("side by side", Economy(SIDE_BY_SIDE), Settings()),
    Way("side by side, attention thinned", Economy(SIDE_BY_SIDE), Settings(attention_stride=2)),
    Way("side by side, the outermost layers alone", Economy(SIDE_BY_SIDE),
        Settings(cache_interval=10_000)),
    Way("the same, attention thinned", Economy(SIDE_BY_SIDE),
        Settings(cache_interval=10_000, attention_stride=2)),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path,
                        default=Path("build/benchmarks/sd21_run/sd21_base_int8"))  # fmt: skip
    parser.add_argument("--wide", type=Path, help="the bundle's model in 16-bit OpenVINO IR")
    options = parser.parse_args()
    bundle: Path = options.bundle
    random = np.random.default_rng(0)
    sample = random.standard_normal((2, 4, 64, 64), dtype=np.float32)
    text = random.standard_normal((2, 77, 1024), dtype=np.float32)
    print(f"{describe_machine()}; {TURNS} turns\n")
    _print_ways(bundle, lambda network: network(sample, 500.0, text))
    _print_cache(bundle)
    _print_shares(bundle)
    _print_types(bundle, options.wide or converted(bundle))


def _print_ways(bundle: Path, ask: Callable[..., object]) -> None:
    networks, first = {}, {}
    for way in WAYS:
        pipeline = Pipeline.load(bundle, economy=way.economy, static=way.static, verify="never")
        networks[way] = pipeline.network(way.settings)
        started = time.perf_counter()
        ask(networks[way])
        first[way] = time.perf_counter() - started
    taken: dict[Way, list[float]] = {way: [] for way in WAYS}
    for _ in range(TURNS):
        for way, network in networks.items():
            started = time.perf_counter()
            ask(network)
            taken[way].append(time.perf_counter() - started)
    print("| both branches | the first call, with compilation | a call | ratio |")
    print("|---|---|---|---|")
    usual = taken[WAYS[0]]
    for way, seconds in taken.items():
        ratios = [mine / other for mine, other in zip(seconds, usual, strict=True)]
        print(
            f"| {way.name} | {first[way]:.1f} s | {statistics.median(seconds):.2f} s "
            f"| x {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |"
        )


def _print_cache(bundle: Path) -> None:
    """What OpenVINO's cache of compiled models saves the second time."""
    settings, taken = Settings(width=512, height=512), []
    with tempfile.TemporaryDirectory(dir=bundle.parent) as cache:
        for cache_dir in (None, cache, cache):
            pipeline = Pipeline.load(bundle, cache_dir=cache_dir, verify="never")
            started = time.perf_counter()
            pipeline.compile(settings)
            taken.append(time.perf_counter() - started)
            del pipeline
        size = sum(file.stat().st_size for file in Path(cache).rglob("*"))
    without, filling, filled = taken
    print(
        f"\nAll parts compiled: {without:.1f} s; with an empty cache {filling:.1f} s, with what "
        f"that left {filled:.1f} s, and {size / 1e9:.2f} GB on disk.\n"
    )


def _print_shares(bundle: Path) -> None:
    pipeline = Pipeline.load(bundle, profiling=True, economy=Economy(TOGETHER), verify="never")
    pipeline.compile(Settings(width=512, height=512))
    profile = quickest_profile(pipeline.compiled_models()["unet"])
    layers = [(one.node_name, one.real_time.total_seconds()) for one in profile]
    total = sum(seconds for _, seconds in layers)
    print("| part | share of a call |")
    print("|---|---|")
    for name, pattern in PARTS.items():
        part = sum(seconds for node, seconds in layers if re.search(pattern, node))
        print(f"| {name} | {part / total:.1%} |")
    known = "|".join(PARTS.values())
    rest = sum(seconds for node, seconds in layers if not re.search(known, node))
    print(f"| all else | {rest / total:.1%} |\n")


def _print_types(bundle: Path, wide: Path) -> None:
    """Time by type of layer: in 16 bits, in 8 as quantized, and in 8 as this runtime draws."""
    models: dict[str, Callable[[], ov.CompiledModel]] = {
        "16-bit": lambda: _compiled_as_it_is(wide),
        "W8A8, the file as it is": lambda: _compiled_as_it_is(bundle),
        "W8A8, as drawn": lambda: _compiled_to_draw(bundle),
    }
    found: dict[str, dict[str, float]] = {}
    for name, compiled in models.items():
        found[name] = {}
        for layer in times_of_compiled(compiled()):
            kind = _kind(layer)
            found[name][kind] = found[name].get(kind, 0.0) + layer.seconds
    kinds = sorted({kind for one in found.values() for kind in one},
                   key=lambda kind: -max(one.get(kind, 0.0) for one in found.values()))  # fmt: skip
    print(f"| type of layer | {' | '.join(found)} |")
    print(f"|---|{'---|' * len(found)}")
    for kind in kinds:
        if max(one.get(kind, 0.0) for one in found.values()) >= LEAST_SECONDS:
            cells = (f"{one.get(kind, 0.0):.3f} s" for one in found.values())
            print(f"| {kind} | {' | '.join(cells)} |")
    print(f"| all | {' | '.join(f'{sum(one.values()):.3f} s' for one in found.values())} |\n")
    macs = multiply_accumulates(bundle)
    ceilings = {"float32": _convolution_speed("f32"), "8 bits": _convolution_speed("i8")}
    print(f"A call multiplies and accumulates {macs / 1e12:.3f}e12 times. One convolution of 320 "
          "channels in 64 x 64 cells, alone:")  # fmt: skip
    for name, speed in ceilings.items():
        print(f"{name}: {speed / 1e12:.3f}e12 a second, so {macs / speed:.2f} s for the whole call")


def _kind(layer: LayerTime) -> str:
    """A layer's type as the device calls it, and whether its kernel works in 8 bits."""
    if not layer.type.startswith(MULTIPLYING):
        return layer.type
    return f"{layer.type}, {'8 bits' if layer.kernel.lower().endswith(('i8', 'u8')) else 'float'}"


def _compiled_as_it_is(folder: Path) -> ov.CompiledModel:
    """The UNet's file for both branches at 512 x 512, without what this runtime does to it."""
    model = ov.Core().read_model(folder / "unet/openvino_model.xml")
    model.reshape(SHAPES)
    return ov.Core().compile_model(model, "CPU", {"PERF_COUNT": "YES"})


def _compiled_to_draw(bundle: Path) -> ov.CompiledModel:
    pipeline = Pipeline.load(bundle, profiling=True, economy=Economy(TOGETHER), verify="never")
    pipeline.compile_unet(Settings(width=512, height=512))
    return pipeline.compiled_models()["unet"]


def multiply_accumulates(bundle: Path) -> float:
    """Of one call with both branches, from the shapes of the layers that multiply."""
    model = ov.Core().read_model(bundle / "unet/openvino_model.xml")
    model.reshape(SHAPES)
    total = 0.0
    for layer in model.get_ops():
        kind = layer.get_type_name()
        if kind == "Convolution":
            total += prod(layer.output(0).shape) * prod(list(layer.input(1).get_shape())[1:])
        elif kind == "MatMul":
            total += prod(layer.output(0).shape) * layer.input(0).get_shape()[-1]
        elif kind == "ScaledDotProductAttention":
            total += 2 * prod(layer.output(0).shape) * layer.input(1).get_shape()[-2]
    return total


def _convolution_speed(precision: str) -> float:
    """Multiply-accumulates a second of convolutions as the UNet has most of."""
    channels, cells, layers = 320, 64, 4
    random = np.random.default_rng(0)
    picture = opset.parameter([2, channels, cells, cells], np.float32)
    values = picture.output(0)
    for _ in range(layers):
        weights = random.standard_normal((channels, channels, 3, 3), dtype=np.float32) / 54
        kernel: ov.Node | np.ndarray = weights
        if precision == "i8":
            values = opset.fake_quantize(values, -4.0, 4.0, -4.0, 4.0, 256).output(0)
            kernel = opset.fake_quantize(opset.constant(weights), -0.1, 0.1, -0.1, 0.1, 255)
        values = opset.convolution(values, kernel, [1, 1], [1, 1], [1, 1], [1, 1]).output(0)
    compiled = ov.Core().compile_model(ov.Model([values], [picture]), "CPU")
    request, inputs = compiled.create_infer_request(), noise_for(compiled)
    seconds = []
    for _ in range(20):
        started = time.perf_counter()
        request.infer(inputs)
        seconds.append(time.perf_counter() - started)
    return float(2 * layers * 9 * (channels * cells) ** 2 / min(seconds))


if __name__ == "__main__":
    main()
