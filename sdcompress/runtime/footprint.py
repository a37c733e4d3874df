"""Measures one pipeline in a process of its own: ``python -m sdcompress.runtime.footprint``.

Reads a job as JSON on standard input and prints the figures as one JSON line. Runs with the
runtime's packages alone, so that memory is that of the engine that ships.
"""

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from sdcompress.runtime.economy import Economy
from sdcompress.runtime.pipeline import Pipeline
from sdcompress.runtime.residence import peak_rss_bytes
from sdcompress.runtime.settings import Job, Settings
from sdcompress.runtime.streaming import stream


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Loads, draws a batch to warm up, one alone and `images` together, and returns the figures.

    `load_seconds` includes the compilation of every component, and `loaded_at` is when that ended,
    in seconds since the epoch. `image_seconds` is the median time of a batch drawn alone,
    `unet_step_seconds` its denoising over the calls of the UNet and `parts_seconds` what each part
    took, as "vae_decoder" whichever decoder it was; `images_per_second` counts all pictures when
    batches overlap.
    """
    settings = Settings(**job["settings"])
    batch, lanes = job.get("batch", 1), job.get("streams", 1)
    start = time.perf_counter()
    pipeline = Pipeline.load(
        Path(job["folder"]),
        device=job["device"],
        execution_precision=job["execution_precision"],
        threads=job.get("threads"),
        streams=lanes,
        static=job.get("static", True),
        economy=Economy(job.get("branches")),
        verify="never",
    )
    pipeline.compile(settings, batch)
    load_seconds, loaded_at = time.perf_counter() - start, time.time()
    jobs = [Job(job["prompt"], seed=seed) for seed in range(max(job["images"], batch))]
    pipeline.draw(jobs[:batch], settings)
    alone = [
        _time_one(pipeline, jobs[index : index + batch], settings)
        for index in range(0, len(jobs) - batch + 1, batch)
    ]
    figures = {
        "load_seconds": load_seconds,
        "loaded_at": loaded_at,
        "unet_step_seconds": statistics.median(one.step_seconds for one in alone),
        "image_seconds": statistics.median(one.seconds for one in alone),
        "parts_seconds": {
            part: statistics.median(one.parts[part] for one in alone) for part in alone[0].parts
        },
    }
    if lanes > 1 or job.get("overlap", False):
        start = time.perf_counter()
        drawn = sum(1 for _ in stream(pipeline, jobs, settings, batch=batch, lanes=lanes))
        figures["images_per_second"] = drawn / (time.perf_counter() - start)
    return figures | {"peak_rss_bytes": peak_rss_bytes()}


class _Timed(NamedTuple):
    """A batch: the whole, a step on average, and its parts, in seconds."""

    seconds: float
    step_seconds: float
    parts: dict[str, float]


def _time_one(pipeline: Pipeline, jobs: list[Job], settings: Settings) -> _Timed:
    """Draws a batch as `Pipeline.draw` does, with a clock around each part."""
    calls = 0
    network = pipeline.network(settings, len(jobs))
    in_unet = 0.0

    def timed_unet(*inputs: Any) -> Any:
        nonlocal in_unet, calls
        calls += 1
        called = time.perf_counter()
        noise = network(*inputs)
        in_unet += time.perf_counter() - called
        return noise

    start = time.perf_counter()
    texts = pipeline.prompts.encode_jobs(jobs, settings)
    encoded = time.perf_counter()
    starts = [pipeline.begin(job, settings) for job in jobs]
    latents = pipeline.denoise(starts, *texts, settings, unet=timed_unet)
    denoised = time.perf_counter()
    pipeline.decode(latents, settings)
    end = time.perf_counter()
    parts = {
        "text_encoder": encoded - start,
        "unet": in_unet,
        "vae_decoder": end - denoised,
        "other": denoised - encoded - in_unet,
    }
    return _Timed(end - start, (denoised - encoded) / calls, parts)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(json.load(sys.stdin))) + "\n")
