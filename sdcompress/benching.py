"""`sdcompress bench`: the grid measured with a progress bar, the best remembered."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import click

from sdcompress.runtime import Pipeline
from sdcompress.starting import describe, measure_start
from sdcompress.tuning import (
    default_streams,
    grid,
    measure_grid,
    recommend,
    remember,
    table,
)


def bench(
    bundle: Path,
    *,
    prompt: str,
    steps: int | None,
    streams: Sequence[int],
    batches: Sequence[int],
    threads: Sequence[int],
    images: int,
    device: str,
    precision: str | None,
) -> Iterator[str]:
    """Measures, yields lines to read, and remembers the recommendation."""
    pipeline = Pipeline.load(bundle, device=device, execution_precision=precision)
    settings = pipeline.settings
    if steps is not None:
        settings = replace(settings, steps=steps)
    tunings = grid(
        streams or default_streams(),
        batches or (1, 2, 4),
        settings,
        threads or (None,),
        pipeline.other_branches(settings),
    )
    with click.progressbar(length=len(tunings), label="measuring") as bar:
        cells = measure_grid(
            bundle,
            settings,
            prompt=prompt,
            device=device,
            precision=precision,
            tunings=tunings,
            images=images,
            on_cell=lambda *_: bar.update(1),
        )
    yield from table(cells)
    remember(bundle, device, precision, recommend(cells))
    yield f"remembered for: sdcompress generate {bundle} PROMPT --mode latency|throughput"
    yield describe(measure_start(bundle, prompt, settings.steps, device, precision))
