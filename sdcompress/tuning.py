"""How many streams and pictures at a time are quickest here, found by measurement and remembered.

Needs the runtime's packages only.
"""

import hashlib
import json
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

from sdcompress.child import measure_in_child
from sdcompress.errors import InputError
from sdcompress.runtime import Economy, Settings
from sdcompress.runtime.settings import bundled_settings
from sdcompress.runtime.trust import cache_folder


@dataclass(frozen=True)
class Tuning:
    """Streams of the models, pictures in a batch, and whether shapes are fixed at compilation.

    Threads of None are OpenVINO's choice, `branches` of None the runtime's.
    """

    streams: int = 1
    batch: int = 1
    static: bool = True
    threads: int | None = None
    branches: str | None = None


@dataclass(frozen=True)
class Cell:
    """What one choice of streams and batch gave, in a process of its own."""

    tuning: Tuning
    image_seconds: float  # from the prompt to the pictures, for a batch drawn alone
    images_per_second: float  # when batches overlap
    peak_rss_bytes: int | None


def measure_grid(
    bundle: Path,
    settings: Settings,
    *,
    prompt: str,
    device: str,
    precision: str | None,
    tunings: Sequence[Tuning],
    images: int,
) -> Iterator[Cell]:
    """Measures every tuning in a child process. Raises EvaluationError if a child fails."""
    for tuning in tunings:
        job = {
            "folder": str(bundle),
            "prompt": prompt,
            "settings": asdict(settings),
            "images": max(images, 2 * tuning.streams * tuning.batch),
            "device": device,
            "execution_precision": precision,
            "overlap": True,
            **asdict(tuning),
        }
        figures = measure_in_child(job)
        yield Cell(
            tuning,
            figures["image_seconds"],
            figures["images_per_second"],
            figures["peak_rss_bytes"],
        )


def grid(
    streams: Sequence[int],
    batches: Sequence[int],
    settings: Settings,
    threads: Sequence[int | None] = (None,),
    branches: Sequence[str] = (),
) -> list[Tuning]:
    """Every combination, with shapes fixed and, where the settings allow it, not.

    One picture alone is also drawn with the branches of guidance asked for as in `branches`.
    """
    every = [
        Tuning(stream, batch, static, count)
        for static in ([False, True] if settings.attention_stride == 1 else [True])
        for stream in streams
        for batch in sorted({1, *batches})  # one alone is what latency means
        for count in threads
    ]
    alone = [one for one in every if (one.streams, one.batch, one.static) == (1, 1, True)]
    return every + [replace(one, branches=way) for one in alone for way in branches]


def default_streams() -> list[int]:
    """1, 2, 4 ... up to the number of processors."""
    processors = os.cpu_count() or 1
    return [2**power for power in range(8) if 2**power <= processors]


def recommend(cells: Sequence[Cell]) -> dict[str, Cell]:
    """The best cell of each mode: the soonest single picture, and the most pictures a second."""
    single = [cell for cell in cells if cell.tuning.batch == 1]
    return {
        "latency": min(single, key=lambda cell: cell.image_seconds),
        "throughput": max(cells, key=lambda cell: cell.images_per_second),
    }


def remember(bundle: Path, device: str, precision: str | None, best: dict[str, Cell]) -> Path:
    """Keeps the recommendation for this machine, device, execution precision and bundle.

    What the bundle draws with counts as well: built again with other shortcuts, it is another.
    """
    path = _record(bundle, device, precision)
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {mode: asdict(cell.tuning) for mode, cell in best.items()}
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    return path


def recall(bundle: Path, device: str, precision: str | None, mode: str) -> Tuning:
    """What was measured for a mode. Raises InputError when nothing was."""
    path = _record(bundle, device, precision)
    try:
        tuning = Tuning(**json.loads(path.read_text(encoding="utf-8"))[mode])
        return Tuning(
            max(int(tuning.streams), 1),
            max(int(tuning.batch), 1),
            bool(tuning.static),
            None if tuning.threads is None else max(int(tuning.threads), 1),
            Economy(tuning.branches).branches,
        )
    except (OSError, ValueError, KeyError, TypeError, InputError):
        raise InputError(
            f"--mode {mode} goes by measurement, and {bundle} was not measured on this machine "
            f"with {device}. Run: sdcompress bench {bundle} --device {device}"
        ) from None


def table(cells: Sequence[Cell]) -> Iterator[str]:
    """The measurements as lines of text, the recommended ones marked."""
    best = recommend(cells)
    yield (
        f"{'streams':>7} {'batch':>5} {'shapes':>7} {'threads':>7} {'branches':>12} "
        f"{'latency':>10} {'images/s':>9} {'memory':>9}"
    )
    for cell in cells:
        chosen = ", ".join(mode for mode, other in best.items() if other is cell)
        memory = f"{cell.peak_rss_bytes / 1e6:,.0f} MB" if cell.peak_rss_bytes else "unknown"
        shapes = "fixed" if cell.tuning.static else "dynamic"
        yield (
            f"{cell.tuning.streams:>7} {cell.tuning.batch:>5} {shapes:>7} "
            f"{cell.tuning.threads or 'auto':>7} {cell.tuning.branches or 'auto':>12} "
            f"{cell.image_seconds:>8.3f} s {cell.images_per_second:>9.3f} {memory:>9}"
            + (f"  <- {chosen}" if chosen else "")
        )


def _record(bundle: Path, device: str, precision: str | None) -> Path:
    here = [
        str(bundle.resolve()),
        str(precision),
        device,
        platform.node(),
        str(os.cpu_count()),
        *(version(name) for name in ("sdcompress", "openvino")),
        repr(bundled_settings(bundle)),
    ]
    unet = bundle / "unet" / "openvino_model.bin"
    if unet.is_file():
        here.append(str(unet.stat().st_size))
    return cache_folder() / "tuning" / f"{hashlib.sha256(repr(here).encode()).hexdigest()}.json"
