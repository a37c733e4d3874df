"""What a run is expected to take: as records, as a table to read, and against what is free."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sdcompress.errors import PreflightError
from sdcompress.memory import available_memory_bytes


@dataclass(frozen=True)
class StageEstimate:
    """What one kind of stage is expected to take. Seconds are those of all its runs together.

    `mapped_bytes` of the peak are weight files, which the system reads again instead of swapping.
    """

    name: str
    detail: str
    seconds: float
    peak_rss_bytes: float
    mapped_bytes: float = 0.0

    @property
    def needed_bytes(self) -> float:
        """Memory without which the stage cannot work."""
        return self.peak_rss_bytes - self.mapped_bytes


@dataclass(frozen=True)
class Estimate:
    """What a run is expected to take, without what is finished already."""

    stages: tuple[StageEstimate, ...]
    disk_bytes: float

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)

    @property
    def peak_rss_bytes(self) -> float:
        return max((stage.peak_rss_bytes for stage in self.stages), default=0.0)

    @property
    def needed_bytes(self) -> float:
        return max((stage.needed_bytes for stage in self.stages), default=0.0)


def require_room(expected: Estimate, folder: Path) -> None:
    """Raises PreflightError when memory or disk do not suffice for a run writing to `folder`."""
    faults = []
    memory = available_memory_bytes()
    if expected.needed_bytes > memory:
        worst = max(expected.stages, key=lambda stage: stage.needed_bytes)
        faults.append(
            f"memory: {worst.name} ({worst.detail}) needs about "
            f"{expected.needed_bytes / 1e9:.1f} GB beside mapped files, {memory / 1e9:.1f} GB are "
            "free: close other programs, or use a machine with more"
        )
    free = shutil.disk_usage(_existing(folder)).free
    if expected.disk_bytes > free:
        faults.append(
            f"disk: the run writes about {expected.disk_bytes / 1e9:.1f} GB, {free / 1e9:.1f} GB "
            f"are free at {folder}: free some space, or write to another disk with --output"
        )
    if faults:
        raise PreflightError(
            "this run does not fit:\n  "
            + "\n  ".join(faults)
            + "\n--ignore-preflight starts it nevertheless"
        )


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder


def describe(expected: Estimate) -> Iterator[str]:
    """Yields the lines of a table for reading."""
    yield f"{'stage':<11} {'what':<28} {'time':>9} {'peak memory':>12} {'of it mapped':>13}"
    for stage in expected.stages:
        yield (
            f"{stage.name:<11} {stage.detail:<28} {_duration(stage.seconds):>9} "
            f"{stage.peak_rss_bytes / 1e9:>9.1f} GB {stage.mapped_bytes / 1e9:>10.1f} GB"
        )
    yield (
        f"{'total':<11} {f'{expected.disk_bytes / 1e9:.1f} GB of disk':<28} "
        f"{_duration(expected.seconds):>9} {expected.peak_rss_bytes / 1e9:>9.1f} GB"
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} m"
    return f"{minutes} m {rest:02} s" if minutes else f"{rest} s"
