"""`sdcompress bench`: the grid measured with a progress bar, the best remembered."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import click

from sdcompress.errors import EvaluationError
from sdcompress.runtime import InputError, Pipeline
from sdcompress.starting import describe, measure_start
from sdcompress.tuning import (
    Cell,
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
    """Measures, yields lines to read, and remembers the recommendation.

    Raises EvaluationError when a choice cannot be measured, after what was measured before it, and
    InputError for batches that the model's files rule out.
    """
    pipeline = Pipeline.load(bundle, device=device, execution_precision=precision)
    settings = pipeline.settings
    if steps is not None:
        settings = replace(settings, steps=steps)
    if not pipeline.any_batch and max(batches, default=1) > 1:
        raise InputError(
            f"{bundle} draws one picture at a time, so --batch can only be 1. To draw several, "
            "build it with convert.batch: null."
        )
    tunings = grid(
        streams or default_streams(),
        batches or ((1, 2, 4) if pipeline.any_batch else (1,)),
        settings,
        threads or (None,),
        pipeline.other_branches(settings),
    )
    measured = measure_grid(
        bundle,
        settings,
        prompt=prompt,
        device=device,
        precision=precision,
        tunings=tunings,
        images=images,
    )
    cells: list[Cell] = []
    try:
        with click.progressbar(measured, length=len(tunings), label="measuring") as bar:
            cells.extend(bar)
    except EvaluationError:
        if cells:
            yield from table(cells)
        raise
    yield from table(cells)
    remember(bundle, device, precision, recommend(cells))
    yield f"remembered for: sdcompress generate {bundle} PROMPT --mode latency|throughput"
    yield describe(measure_start(bundle, prompt, settings.steps, device, precision))
