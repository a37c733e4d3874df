"""What it takes to make a picture of 512 x 512 from latents: ``make bench-decoders``.

After ``make bench-preflight``. The 16-bit VAE as it was exported and with its convolutions computed
before doubling, and, with ``--fast``, the W8A8 VAE and the tiny decoder of such a bundle. All are
compiled at the same time and take turns. Prints one Markdown table. About three minutes on two
cores.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np

from sdcompress.processor import describe_machine
from sdcompress.runtime import Pipeline, Settings
from sdcompress.runtime.arrays import Float32

TURNS = 7
SETTINGS = Settings(width=512, height=512)
DOUBLING = "sdcompress.runtime.components.convolve_before_doubling"
Decoder = tuple[str, Pipeline, Settings]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path,
                        default=Path("build/benchmarks/sd21_run/sd21_base_int8"))  # fmt: skip
    parser.add_argument(
        "--fast", type=Path, help="one with a W8A8 VAE decoder, best with a tiny one as well"
    )
    options = parser.parse_args()
    latents = np.random.default_rng(0).standard_normal((1, 4, 64, 64), dtype=np.float32)
    found = [*_decoders(options.bundle, options.fast)]
    first = [_seconds(one, latents) for one in found]
    taken: list[list[float]] = [[] for _ in found]
    for _ in range(TURNS):
        for one, seconds in zip(found, taken, strict=True):
            seconds.append(_seconds(one, latents))
    print(f"{describe_machine()}; {TURNS} turns\n")
    print("| decoder | the first picture, with compilation | a picture | ratio |")
    print("|---|---|---|---|")
    for (name, *_), begun, seconds in zip(found, first, taken, strict=True):
        ratios = [mine / usual for mine, usual in zip(seconds, taken[0], strict=True)]
        print(
            f"| {name} | {begun:.1f} s | {statistics.median(seconds):.2f} s "
            f"| x {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |"
        )


def _decoders(bundle: Path, fast: Path | None) -> Iterator[Decoder]:
    yield "VAE, 16-bit, as exported", Pipeline.load(bundle, verify="never"), SETTINGS
    yield "VAE, 16-bit", Pipeline.load(bundle, verify="never"), SETTINGS
    if fast:
        yield "VAE, W8A8", Pipeline.load(fast, verify="never"), SETTINGS
        pipeline = Pipeline.load(fast, verify="never")
        if pipeline.has_tiny_decoder:
            yield "tiny decoder, 16-bit", pipeline, replace(SETTINGS, decoder="tiny")


@contextmanager
def _as_exported(decoder: Decoder) -> Iterator[None]:
    """Leaves the graph as it is, where that is what is measured."""
    if "as exported" not in decoder[0]:
        yield
        return
    with mock.patch(DOUBLING, lambda _: []):
        yield


def _seconds(decoder: Decoder, latents: Float32) -> float:
    _, pipeline, settings = decoder
    with _as_exported(decoder):
        started = time.perf_counter()
        pipeline.decode(latents, settings)
        return time.perf_counter() - started


if __name__ == "__main__":
    main()
