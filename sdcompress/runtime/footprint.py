"""Measures one pipeline in a process of its own: ``python -m sdcompress.runtime.footprint``.

Reads a job as JSON on standard input and prints the figures as one JSON line. Runs with the
runtime's packages alone, so that memory is that of the engine that ships.
"""

import itertools
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from sdcompress.runtime.pipeline import Pipeline, Settings


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Loads, draws one picture to warm up and `images` more, and returns the figures.

    `load_seconds` includes the compilation of every component; `unet_step_seconds` and
    `image_seconds` are medians over the timed pictures.
    """
    settings = Settings(**job["settings"])
    start = time.perf_counter()
    pipeline = Pipeline.load(
        Path(job["folder"]), device=job["device"], execution_precision=job["execution_precision"]
    )
    pipeline.compile()
    load_seconds = time.perf_counter() - start
    steps: list[float] = []
    images: list[float] = []
    for index in range(job["images"] + 1):
        image_seconds, step_seconds = _time_one(pipeline, job["prompt"], index, settings)
        if index > 0:
            images.append(image_seconds)
            steps.extend(step_seconds)
    return {
        "load_seconds": load_seconds,
        "unet_step_seconds": statistics.median(steps),
        "image_seconds": statistics.median(images),
        "peak_rss_bytes": peak_rss_bytes(),
    }


def _time_one(
    pipeline: Pipeline, prompt: str, seed: int, settings: Settings
) -> tuple[float, list[float]]:
    ticks: list[float] = []
    start = time.perf_counter()
    pipeline.generate(
        prompt,
        seed=seed,
        settings=settings,
        on_step=lambda *_: ticks.append(time.perf_counter()),
    )
    elapsed = time.perf_counter() - start
    return elapsed, [later - earlier for earlier, later in itertools.pairwise(ticks)]


def peak_rss_bytes() -> int | None:
    """Returns this process's resident high-water mark, or None where the system keeps none.

    On Windows the parent reads it instead, because the standard library cannot.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return None


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(json.load(sys.stdin))) + "\n")
