"""What a bundle's shortcuts gain and cost: every combination drawn, judged and timed.

Pictures are those of the evaluation, against the same float32 baseline, so what is found here is
what a recipe's `runtime` section will be judged by.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from sdcompress.errors import InputError
from sdcompress.evaluate.comparing import changes
from sdcompress.evaluate.records import Estimate
from sdcompress.identity import BASELINE, COMPRESSED
from sdcompress.recipe import Recipe, Runtime
from sdcompress.report.comparison import dominates
from sdcompress.runtime import Settings
from sdcompress.trial import Trial
from sdcompress.ways import Folders, Way

Shortcuts = dict[str, int | float | str]  # keys of a recipe's `runtime` section


# Keys of the `runtime` section, by the field of a grid that has their values.
_KEYS = {
    "cache_intervals": "cache_interval",
    "cache_depths": "cache_depth",
    "attention_strides": "attention_stride",
    "guidance_begins": "guidance_begin",
    "guidance_ends": "guidance_end",
    "steps": "steps",
    "schedulers": "scheduler",
    "decoders": "decoder",
}


@dataclass(frozen=True)
class Grid:
    """The values to combine; None is as the recipe samples."""

    cache_intervals: Sequence[int] = (1, 2, 3, 5)
    cache_depths: Sequence[int] = (1,)
    attention_strides: Sequence[int] = (1, 2)
    guidance_begins: Sequence[float] = (0.0,)
    guidance_ends: Sequence[float] = (1.0, 0.6)
    steps: Sequence[int | None] = (None,)
    schedulers: Sequence[str | None] = (None,)
    decoders: Sequence[str] = ("vae",)

    def shortcuts(self) -> list[Shortcuts]:
        """Every combination as keys of a recipe's `runtime` section; none at all comes first."""
        found: list[Shortcuts] = [{}]
        plain = Runtime().model_dump()
        for values in itertools.product(*(getattr(self, name) for name in _KEYS)):
            named = zip(_KEYS.values(), values, strict=True)
            chosen = {key: value for key, value in named if value != plain[key]}
            if "cache_interval" not in chosen:
                chosen.pop("cache_depth", None)  # which would mean nothing
            if chosen not in found:
                found.append(chosen)
        return found

    def asked(self, shortcuts: Shortcuts) -> Shortcuts:
        """Those of them whose values are not the usual ones to combine."""
        usual = Grid()
        named = {key for name, key in _KEYS.items() if getattr(self, name) != getattr(usual, name)}
        return {key: value for key, value in shortcuts.items() if key in named}


def allowed(grid: Grid, recipe: Recipe) -> tuple[list[Shortcuts], list[str]]:
    """The combinations that can be drawn, and why others are left out: for usual values only.

    Raises InputError for a combination of values that were asked for.
    """
    found: list[Shortcuts] = []
    left_out: list[str] = []
    for one in grid.shortcuts():
        try:
            _require_allowed(one, recipe)
        except InputError as fault:
            _require_allowed(grid.asked(one), recipe)
            left_out.append(str(fault))
        else:
            found.append(one)
    return found, left_out


def _require_allowed(shortcuts: Shortcuts, recipe: Recipe) -> None:
    """Raises InputError when the recipe could not have them in its `runtime` section.

    Where nothing is guided, when guidance lasts would change nothing.
    """
    if recipe.sampling.branches == 1 and {"guidance_begin", "guidance_end"} & shortcuts.keys():
        raise InputError(
            f"cannot draw with {describe(shortcuts)}: sampling.guidance_scale is 1, so that no "
            "call is guided"
        )
    Recipe.of(recipe.as_dict() | {"runtime": shortcuts}, f"cannot draw with {describe(shortcuts)}")


@dataclass(frozen=True)
class TradeOff:
    """One combination: time for a picture, and how the pictures differ from the baseline's.

    `clip_score` is the paired difference, `ssim` the mean over the pairs. `on_front` tells that no
    other combination is both quicker and better by CLIP score.
    """

    shortcuts: Shortcuts
    image_seconds: float
    clip_score: Estimate
    ssim: float
    samples: int
    on_front: bool = False


def measure_trade_offs(
    trial: Trial, folders: Folders, combinations: Sequence[Shortcuts], turns: int
) -> tuple[TradeOff, ...]:
    """Draws the evaluation's pictures in each way; the quickest of `turns` in turn counts."""
    ways = _ways(trial, combinations)
    candidates = [way for name, way in ways.items() if name != BASELINE]
    pictures = {name: trial.draw(way, folders) for name, way in ways.items()}
    seen, likeness = trial.score(ways, pictures)
    seconds = _seconds(trial, folders, candidates, turns)
    instruments = trial.judging.instruments
    metrics = instruments.picture_metrics()
    measured = []
    for number, shortcuts in enumerate(combinations):
        name = str(number)
        told = changes(instruments, metrics, seen[BASELINE], seen[name], likeness[name])
        by_name = {metric.name: change for metric, change in told}
        score = by_name["clip_score"]
        measured.append(
            TradeOff(
                shortcuts,
                seconds[number],
                score.value,
                by_name["ssim"].value.value,
                score.samples,
            )
        )
    return tuple(replace(one, on_front=not _beaten(one, measured)) for one in measured)


def finished(trial: Trial, combinations: Sequence[Shortcuts], turns: int) -> set[str]:
    """Which of the stages "draw" and "measure" have nothing left to do."""
    if not {BASELINE, COMPRESSED} <= trial.keys.keys():
        return set()
    ways = _ways(trial, combinations)
    candidates = [way for name, way in ways.items() if name != BASELINE]
    drawn = all(trial.holds(way) for way in ways.values())
    timed = all(
        trial.has_footprint(way, turn, candidates) for way in candidates for turn in range(turns)
    )
    return {name for name, done in (("draw", drawn), ("measure", timed)) if done}


def _ways(trial: Trial, combinations: Sequence[Shortcuts]) -> dict[str, Way]:
    """The baseline, and by their numbers the combinations."""
    plain = trial.ways(len(trial.shots))[BASELINE]
    precision = trial.recipe.execution_precision
    candidate = replace(plain, side=COMPRESSED, execution_precision=precision)
    return {BASELINE: plain} | {
        str(number): replace(
            candidate,
            title=describe(one),
            settings=Settings(**asdict(plain.settings) | one),
        )
        for number, one in enumerate(combinations)
    }


def _seconds(trial: Trial, folders: Folders, ways: Sequence[Way], turns: int) -> list[float]:
    """What a picture takes in each way, in a process of its own; the ways take turns."""
    taken = [
        [trial.footprint(way, folders, turn, beside=ways).image_seconds for way in ways]
        for turn in range(turns)
    ]
    return [min(column) for column in zip(*taken, strict=True)]


def _beaten(one: TradeOff, others: Sequence[TradeOff]) -> bool:
    return any(dominates(_place(other), _place(one)) for other in others)


def _place(one: TradeOff) -> tuple[float, float]:
    return one.clip_score.value, one.image_seconds


def describe(shortcuts: Mapping[str, object]) -> str:
    """In words, for a table."""
    return ", ".join(f"{name} {value}" for name, value in shortcuts.items()) or "no shortcuts"


def recommend(found: Sequence[TradeOff], drop: float | None) -> TradeOff | None:
    """The quickest whose CLIP score drops by no more than `drop`, with its whole interval."""
    if drop is None:
        return None
    within = [
        one
        for one in found
        if one.clip_score.low is not None
        and one.clip_score.low >= -drop
        and one.image_seconds < found[0].image_seconds
    ]
    return min(within, key=lambda one: one.image_seconds, default=None)


def table(found: Sequence[TradeOff], drop: float | None) -> Iterator[str]:
    """Yields the lines of a table, the front marked, and what may go into a recipe."""
    plain = found[0].image_seconds
    yield (
        f"{'shortcuts':<58} {'a picture':>10} {'ratio':>7} {'CLIP score':>11} "
        f"{'95 % interval':>16} {'SSIM':>6}"
    )
    for one in found:
        score = one.clip_score
        interval = "-" if score.low is None else f"{score.low:+.2f} to {score.high:+.2f}"
        yield (
            f"{describe(one.shortcuts):<58} {one.image_seconds:>8.2f} s "
            f"{'x ' + format(one.image_seconds / plain, '.2f'):>7} {score.value:>+11.2f} "
            f"{interval:>16} {one.ssim:>6.3f}" + ("  <- front" if one.on_front else "")
        )
    yield f"CLIP score and SSIM are against the float32 baseline, over {found[0].samples} prompts"
    if drop is None:
        return
    best = recommend(found, drop)
    if best is None:
        yield f"none keeps the CLIP score within {drop:g} of the baseline's with its whole interval"
    else:
        chosen = ", ".join(f"{name}: {value}" for name, value in best.shortcuts.items())
        yield f"quickest within the budget of {drop:g}, for a recipe:  runtime: {{{chosen}}}"
