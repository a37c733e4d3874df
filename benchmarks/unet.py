"""Where a call of the full-size UNet spends its time, and what changes of how it is asked do to it.

``make bench-unet``, after ``make bench-preflight``. All ways to ask are compiled at the same time
and take turns, because the machine's speed changes from minute to minute. Prints one Markdown table
of them and one of the shares of the network's parts. About five minutes on two cores.
"""

import argparse
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sdcompress.executed import quickest_profile
from sdcompress.processor import describe_machine
from sdcompress.runtime import Economy, Pipeline, Settings
from sdcompress.runtime.economy import IN_TURN, SIDE_BY_SIDE, TOGETHER

TURNS = 7
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
    bundle: Path = parser.parse_args().bundle
    random = np.random.default_rng(0)
    sample = random.standard_normal((2, 4, 64, 64), dtype=np.float32)
    text = random.standard_normal((2, 77, 1024), dtype=np.float32)
    print(f"{describe_machine()}; {TURNS} turns\n")
    _print_ways(bundle, lambda network: network(sample, 500.0, text))
    _print_cache(bundle)
    _print_shares(bundle)


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


if __name__ == "__main__":
    main()
