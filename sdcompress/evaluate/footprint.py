"""Load time, step time, picture time and memory, each pipeline in a fresh child process.

Resident memory counts mapped weight files, which the system can reclaim; anonymous memory does
not. Both are reported.
"""

from dataclasses import asdict
from pathlib import Path

from sdcompress.child import measure_in_child
from sdcompress.evaluate.records import Footprint
from sdcompress.ir import pipeline_bytes
from sdcompress.memory import MemoryWatch
from sdcompress.runtime import Settings


def measure_footprint(
    folder: Path,
    *,
    prompt: str,
    settings: Settings,
    images: int,
    device: str,
    execution_precision: str | None,
) -> Footprint:
    """Runs :mod:`sdcompress.runtime.footprint` on `folder` and watches the child's memory.

    Raises EvaluationError with the child's last words when it fails.
    """
    job = {
        "folder": str(folder),
        "prompt": prompt,
        "settings": asdict(settings),
        "images": images,
        "device": device,
        "execution_precision": execution_precision,
    }
    watch = MemoryWatch()
    figures = measure_in_child(job, watch.over)
    return Footprint(
        load_seconds=figures["load_seconds"],
        unet_step_seconds=figures["unet_step_seconds"],
        image_seconds=figures["image_seconds"],
        peak_rss_bytes=figures["peak_rss_bytes"] or watch.peak_rss_bytes,
        peak_anonymous_bytes=watch.peak_anonymous_bytes,
        disk_bytes=pipeline_bytes(folder),
    )
