"""Time and memory of both sides, each turn in a fresh child process, the sides taking turns.

Whatever else the machine does falls on neighbouring turns of both sides alike, so ratios are taken
between neighbours. Resident memory counts mapped weight files, which the system can reclaim;
anonymous memory does not.
"""

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sdcompress.child import measure_in_child
from sdcompress.evaluate.pictures import Variant
from sdcompress.evaluate.records import (
    TURN_FIGURES,
    Footprint,
    MemorySample,
    Performance,
    Side,
    Spread,
)
from sdcompress.ir import pipeline_bytes
from sdcompress.memory import MemoryWatch, Sampled
from sdcompress.progress import Advance
from sdcompress.store import read_record, write_record

_KEPT_SAMPLES = 300  # of memory over time, enough for a plot


def measure_performance(
    baseline: Variant,
    candidate: Variant,
    prompt: str,
    turns: int,
    folder: Path,
    on_process: Advance,
) -> Performance:
    """Measures `turns` pictures of each side. What is measured is kept in `folder`."""
    sides = {"baseline": baseline, "candidate": candidate}
    files = [(name, folder / f"{name}-{turn}.json") for turn in range(turns) for name in sides]
    done = sum(file.exists() for _, file in files)
    if done:
        on_process(done, len(files))
    measured: dict[str, list[Footprint]] = {name: [] for name in sides}
    for name, file in files:
        if not file.exists():
            write_record(file, Footprint, measure_footprint(sides[name], prompt))
            done += 1
            on_process(done, len(files))
        measured[name].append(read_record(file, Footprint))
    return Performance(
        **{name: side_of(found) for name, found in measured.items()},
        ratios=ratios(measured["baseline"], measured["candidate"]),
    )


def measure_footprint(variant: Variant, prompt: str) -> Footprint:
    """Draws a picture to warm up and one to measure in a child, and watches its memory.

    Raises EvaluationError with the child's last words when it fails.
    """
    watch = MemoryWatch(keep=True)
    figures = measure_in_child(child_job(variant, prompt), watch.over)
    loading, drawing = _split(watch.samples, figures["loaded_at"])
    return Footprint(
        load_seconds=figures["load_seconds"],
        unet_step_seconds=figures["unet_step_seconds"],
        image_seconds=figures["image_seconds"],
        parts_seconds=figures["parts_seconds"],
        peak_rss_bytes=figures["peak_rss_bytes"] or watch.peak_rss_bytes,
        peak_anonymous_bytes=watch.peak_anonymous_bytes,
        load_peak_rss_bytes=max(one.rss_bytes for one in loading),
        load_peak_anonymous_bytes=max(one.anonymous_bytes for one in loading),
        draw_peak_rss_bytes=max(one.rss_bytes for one in drawing),
        draw_peak_anonymous_bytes=max(one.anonymous_bytes for one in drawing),
        disk_bytes=pipeline_bytes(variant.folder),
        loaded_at=figures["loaded_at"] - watch.samples[0].time,
        memory=_thinned(
            [
                MemorySample(
                    one.time - watch.samples[0].time,
                    one.anonymous_bytes,
                    max(one.rss_bytes - one.anonymous_bytes, 0),
                )
                for one in watch.samples
            ]
        ),
    )


def _split(samples: Sequence[Sampled], moment: float) -> tuple[list[Sampled], list[Sampled]]:
    """The samples until a moment and those after it; the nearest one where a part has none."""
    before = [one for one in samples if one.time <= moment]
    after = [one for one in samples if one.time > moment]
    return before or after[:1], after or before[-1:]


def child_job(variant: Variant, prompt: str) -> dict[str, Any]:
    """What :mod:`sdcompress.runtime.footprint` is told: one picture to warm up, one to measure."""
    return {
        "folder": str(variant.folder),
        "prompt": prompt,
        "settings": asdict(variant.settings),
        "images": 1,
        "device": variant.device,
        "execution_precision": variant.execution_precision,
    }


def side_of(turns: Sequence[Footprint]) -> Side:
    """Puts the turns of one side together."""
    highest = max(turns, key=lambda one: one.peak_rss_bytes)
    spreads: dict[str, Any] = {
        name: spread([getattr(one, name) for one in turns]) for name in TURN_FIGURES
    }
    return Side(
        **spreads,
        parts_seconds={
            part: statistics.median(one.parts_seconds[part] for one in turns)
            for part in turns[0].parts_seconds
        },
        disk_bytes=turns[0].disk_bytes,
        loaded_at=highest.loaded_at,
        memory=highest.memory,
    )


def ratios(baseline: Sequence[Footprint], candidate: Sequence[Footprint]) -> dict[str, Spread]:
    """Candidate / baseline of each turn with its neighbour."""
    pairs = list(zip(baseline, candidate, strict=True))
    return {
        name: spread([getattr(after, name) / getattr(before, name) for before, after in pairs])
        for name in TURN_FIGURES
    }


def spread(values: Sequence[float]) -> Spread:
    """The median of the values, the least and the most."""
    return Spread(statistics.median(values), min(values), max(values))


def _thinned(samples: Sequence[MemorySample]) -> tuple[MemorySample, ...]:
    """At most `_KEPT_SAMPLES`: of neighbours, the one with the most memory."""
    width = -(-len(samples) // _KEPT_SAMPLES) or 1
    return tuple(
        max(samples[start : start + width], key=lambda one: one.anonymous_bytes + one.file_bytes)
        for start in range(0, len(samples), width)
    )
