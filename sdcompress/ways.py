"""The ways to draw that an evaluation compares: both sides, and the baseline's yardsticks.

A yardstick is a harmless change of the baseline. How far it moves a metric says how much a
difference of that metric means.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from sdcompress.evaluate.pictures import BASELINE_PRECISION, Shot, Variant
from sdcompress.evaluate.records import Skipped
from sdcompress.identity import BASELINE, COMPRESSED
from sdcompress.processor import executes_bf16
from sdcompress.runtime import Settings

Folders = Mapping[str, Path]  # of both sides' pipelines
_FEWER_STEPS = 5
_OTHER_SEED = 1_000_003  # further than any evaluation counts


@dataclass(frozen=True)
class Way:
    """One way to draw: which side's model, how it is executed, the settings and what is drawn."""

    title: str
    side: str
    execution_precision: str | None
    settings: Settings
    shots: tuple[Shot, ...]

    def variant(self, folders: Folders, device: str) -> Variant:
        """The same of a pipeline at hand."""
        return Variant(folders[self.side], device, self.execution_precision, self.settings)


def ways_to_draw(
    settings: Settings,
    candidate: Settings,
    shots: tuple[Shot, ...],
    yardstick_prompts: int | None,
    device: str,
    execution_precision: str | None,
) -> dict[str, Way]:
    """Both sides on all shots, then the yardsticks on the first `yardstick_prompts` (None: all).

    Baseline and yardsticks are drawn with `settings`, `execution_precision` is the candidate's.
    """
    baseline = Way("baseline", BASELINE, BASELINE_PRECISION, settings, shots)
    found = {
        BASELINE: baseline,
        COMPRESSED: Way("compressed", COMPRESSED, execution_precision, candidate, shots),
    }
    few = replace(baseline, shots=shots[:yardstick_prompts])
    if len(few.shots) < 2:
        return found
    if _has_bf16(device):
        found["bf16"] = replace(few, title="baseline in BF16", execution_precision="bf16")
    steps = settings.steps - _FEWER_STEPS
    if steps >= 2:
        found["steps"] = replace(
            few,
            title=f"baseline, {steps} steps",
            settings=replace(settings, steps=steps),
        )
    others = tuple(replace(shot, seed=shot.seed + _OTHER_SEED) for shot in few.shots)
    found["seed"] = replace(few, title="baseline, other seeds", shots=others)
    return found


def absent_yardsticks(
    ways: Mapping[str, Way], yardstick_prompts: int | None, device: str
) -> tuple[Skipped, ...]:
    """The yardsticks that are not among the ways, and why."""
    if yardstick_prompts == 0:
        return (Skipped("Yardsticks", "evaluate.yardstick_prompts is 0"),)
    missing = []
    if "bf16" not in ways:
        missing.append(
            Skipped("Yardstick of BF16 execution", f"{device} does not execute in BF16 here")
        )
    if "steps" not in ways:
        steps = ways[BASELINE].settings.steps
        missing.append(
            Skipped(
                "Yardstick of fewer steps",
                f"{steps} steps are too few to leave {_FEWER_STEPS} out",
            )
        )
    return tuple(missing)


def yardsticks(ways: Mapping[str, Way]) -> list[str]:
    """The names of those ways that are neither side."""
    return [name for name in ways if name not in (BASELINE, COMPRESSED)]


def heading(ways: Mapping[str, Way], name: str) -> str:
    """A yardstick's title, with the number of its prompts where they are not all."""
    count = len(ways[name].shots)
    every = count == len(ways[BASELINE].shots)
    return ways[name].title if every else f"{ways[name].title} ({count} prompts)"


def _has_bf16(device: str) -> bool:
    return device == "CPU" and executes_bf16()
