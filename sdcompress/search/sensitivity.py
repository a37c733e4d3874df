"""What each group of layers costs in quality when a variant takes its place: two yardsticks.

*Fidelity* is how far the prediction of one call moves. *Content* is how far the picture that it
speaks of moves in the eyes of CLIP; one yardstick alone hides what the other sees (MixDQ,
arXiv:2405.17873). Both are by timestep: calls are recorded calibration inputs, each asked with one
group switched to the variant. The groups with the largest errors are then confirmed on short
trajectories of their own, which tell how a group's error grows on the way to the picture.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from math import log10
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from sdcompress.demo.checker import check
from sdcompress.evaluate.clip_score import ClipEyes, ClipScorer
from sdcompress.evaluate.clip_similarity import clip_similarities
from sdcompress.evaluate.picture_tensor import as_tensor
from sdcompress.evaluate.pictures import BASELINE_PRECISION, Shot, Variant
from sdcompress.evaluate.sqnr import denoise_shot
from sdcompress.evaluate.ssim import ssim
from sdcompress.ir import IR_NAME
from sdcompress.progress import Advance
from sdcompress.runtime import NotFiniteError, Settings
from sdcompress.search.calls import Call, Guidance, shrunk
from sdcompress.search.groups import CONTENT_KINDS, Group
from sdcompress.search.switchboard import Switchboard
from sdcompress.store import read_record, write_record

Array = np.ndarray[Any, Any]
T = TypeVar("T")
WHOLE = "all groups"
OVERFLOWED = 1e6
"""The noise of what overflows, which is no option; nothing else has so much."""
_MOST_LOSS = 2.0  # of opposite embeddings


@dataclass(frozen=True)
class GroupError:
    """One group as in a variant, the rest as in the baseline.

    `noise` is the error's share of the guided prediction's power at each timestep (the inverse of
    SQNR); `content` one minus the cosine of CLIP embeddings of the pictures that predictions speak
    of, for groups that decide on content: all the others' pictures would take long to decode.
    """

    group: str
    noise: tuple[float, ...]
    content: tuple[float, ...] | None = None

    @property
    def mean_noise(self) -> float:
        return float(np.mean(self.noise))

    @property
    def overflows(self) -> bool:
        """Whether it does at any of the timesteps."""
        return max(self.noise) >= OVERFLOWED

    @property
    def mean_content(self) -> float:
        """Nothing where the group does not decide on content."""
        return float(np.mean(self.content)) if self.content else 0.0


@dataclass(frozen=True)
class DrawnError:
    """The same at the end of short trajectories, of the latents and of the pictures: means.

    `ssim` is the likeness of the pictures to the baseline's; `checker` by how many percent more of
    them show what their prompts state, where a rule-based checker can tell. What overflows makes no
    pictures.
    """

    group: str
    noise: float
    content: float
    ssim: float | None = None
    checker: float | None = None


@dataclass(frozen=True)
class Sensitivity:
    """A variant's groups, noisiest timestep first, and all of them together as `WHOLE`."""

    timesteps: tuple[int, ...]
    errors: tuple[GroupError, ...]
    drawn: tuple[DrawnError, ...]

    def of(self, group: str) -> GroupError | None:
        """What was measured of a group; None where the variant leaves it as it is."""
        return next((one for one in self.errors if one.group == group), None)

    def expected(self, group: str) -> tuple[float, float]:
        """Noise and content loss to expect at the end of a trajectory with the group alone.

        Of groups that were not drawn with, what one call says, grown as those of the others did.
        Only groups that decide on content have a loss of it. Overflow at one timestep is overflow.
        """
        error = self.of(group)
        if error is None:
            return 0.0, 0.0
        if error.overflows:
            return OVERFLOWED, _MOST_LOSS
        for one in self.drawn:
            if one.group == group:
                return one.noise, 0.0 if error.content is None else one.content
        single = [one for one in self.drawn if one.group != WHOLE and one.noise < OVERFLOWED]
        pairs = [
            (known, one) for one in single if (known := self.of(one.group)) and not known.overflows
        ]
        noise = _growth([(known.mean_noise, one.noise) for known, one in pairs])
        content = _growth([(known.mean_content, one.content) for known, one in pairs])
        return error.mean_noise * noise, error.mean_content * content


@dataclass(frozen=True)
class Experiment:
    """What a variant's groups are judged on.

    `shots` are drawn with `settings` in short; `confirmed` is of how many groups by each yardstick.
    `checked` tells that the checker understands their prompts, `any_size` that the decoder takes
    latents of any size.
    """

    baseline: Path
    variant: Path
    device: str
    groups: tuple[Group, ...]
    calls: tuple[Call, ...]
    guidance: Guidance
    shots: tuple[Shot, ...]
    settings: Settings
    scorer: ClipScorer
    confirmed: int
    checked: bool
    any_size: bool


def measure_sensitivity(experiment: Experiment, folder: Path, on_call: Advance) -> Sensitivity:
    """Measures group by group; what is measured is kept in `folder`, and not measured again.

    `on_call` is told of the UNet's calls.
    """
    meter = _Meter(experiment)
    wanted = [*(group.name for group in meter.board.groups), WHOLE]
    calls = {
        "calls": len(experiment.calls),
        "drawn": len(experiment.shots) * experiment.settings.steps,
    }
    # Both yardsticks may name the same group, so that fewer are drawn.
    most = len(wanted) * calls["calls"] + (2 * experiment.confirmed + 1) * calls["drawn"]
    keeper = Keeper(folder, calls, most, on_call)
    content = {one.name for one in experiment.groups if one.kind in CONTENT_KINDS} | {WHOLE}
    errors = []
    for index, name in enumerate(wanted):
        measure = partial(meter.of_calls, name, shows_content=name in content)
        errors.append(keeper.kept("calls", index, GroupError, measure))
    drawn = []
    for index, name in enumerate(_worth_drawing(errors, experiment.confirmed)):
        measure_drawn = partial(meter.of_pictures, name)
        drawn.append(keeper.kept("drawn", index, DrawnError, measure_drawn))
    keeper.finish()
    timesteps = tuple(call.timestep for call in experiment.calls)
    return Sensitivity(timesteps, tuple(errors), tuple(drawn))


def _growth(pairs: Sequence[tuple[float, float]]) -> float:
    """The median of how often an error of calls is that at the end."""
    found = [after / before for before, after in pairs if before > 0.0]
    return float(np.median(found)) if found else 1.0


class Keeper:
    """Keeps figures in files of their own, and tells how many calls of the UNet are done.

    `calls` is what a figure of each kind takes, `most` what all of them do.
    """

    def __init__(self, folder: Path, calls: Mapping[str, int], most: int, on_call: Advance) -> None:
        self._folder, self._calls, self._most, self._on_call = folder, calls, most, on_call
        self._done = sum(
            len(list(folder.glob(f"{kind}-*.json"))) * each for kind, each in calls.items()
        )
        if self._done:  # at once, so that it does not count as speed
            on_call(self._done, self._most)

    def kept(self, kind: str, index: int, record: type[T], measure: Callable[[], T]) -> T:
        """What was measured before, or now."""
        file = self._folder / f"{kind}-{index:04d}.json"
        if not file.exists():
            write_record(file, record, measure())
            self._done += self._calls[kind]
            self._on_call(self._done, self._most)
        return read_record(file, record)

    def finish(self) -> None:
        self._on_call(self._most, self._most)


def _worth_drawing(errors: Sequence[GroupError], most: int) -> Iterator[str]:
    """Yields the groups with the largest finite errors by either yardstick, and all together."""
    single = [one for one in errors if one.group != WHOLE and not one.overflows]
    by_noise = sorted(single, key=lambda one: -one.mean_noise)
    seen = [one for one in single if one.content is not None]
    by_content = sorted(seen, key=lambda one: -one.mean_content)
    yield from dict.fromkeys(one.group for one in (*by_noise[:most], *by_content[:most]))
    yield WHOLE


@dataclass(frozen=True)
class _Drawn:
    """Pictures uint8 [n, h, w, 3], their latents [n, 4, h/8, w/8] and embeddings [n, d].

    `shown` is the percentage of them that show what their prompts state.
    """

    latents: Array
    pictures: Array
    looks: Array
    shown: float | None


class _Meter:
    """Compares with the baseline, whose answers are asked for once."""

    def __init__(self, experiment: Experiment) -> None:
        self._plan = experiment
        shapes = {name: value.shape for name, value in experiment.calls[0].inputs.items()}
        xml, other = (one / IR_NAME for one in (experiment.baseline / "unet", experiment.variant))
        self.board = Switchboard(xml, other, experiment.groups, shapes, experiment.device)
        self._timestep = experiment.calls[0].inputs["timestep"]
        exact = Variant(
            experiment.baseline, experiment.device, BASELINE_PRECISION, experiment.settings
        )
        self._pipeline = exact.open()
        self._eyes = ClipEyes(experiment.scorer)

    def of_calls(self, name: str, *, shows_content: bool) -> GroupError:
        answers = self._answers(self._switched(name))
        noise = tuple(
            noise_share(self._plan.guidance.guided(before), self._plan.guidance.guided(after))
            for before, after in zip(self._expected, answers, strict=True)
        )
        if not shows_content:
            return GroupError(name, noise)
        content = tuple(self._content(*one) for one in enumerate(answers))
        return GroupError(name, noise, content)

    def of_pictures(self, name: str) -> DrawnError:
        switched = self._switched(name)
        try:
            drawn = self._drawn(switched)
        except NotFiniteError:
            return DrawnError(name, OVERFLOWED, _MOST_LOSS)
        before = self._expected_drawn
        noise = [noise_share(*pair) for pair in zip(before.latents, drawn.latents, strict=True)]
        pairs = zip(before.pictures, drawn.pictures, strict=True)
        return DrawnError(
            name,
            float(np.mean(noise)),
            float(np.mean(content_loss(before.looks, drawn.looks))),
            float(np.mean([ssim(as_tensor(one), as_tensor(other)) for one, other in pairs])),
            None if drawn.shown is None or before.shown is None else drawn.shown - before.shown,
        )

    def _switched(self, name: str) -> Collection[str]:
        return {one.name for one in self.board.groups} if name == WHOLE else {name}

    def _answers(self, switched: Collection[str]) -> list[Array]:
        return [self.board.ask(call.inputs, switched) for call in self._plan.calls]

    @cached_property
    def _expected(self) -> list[Array]:
        return self._answers(())

    @cached_property
    def _expected_looks(self) -> list[Array]:
        return [self._look(*one) for one in enumerate(self._expected)]

    @cached_property
    def _expected_drawn(self) -> "_Drawn":
        return self._drawn(())

    def _drawn(self, switched: Collection[str]) -> "_Drawn":
        shots = self._plan.shots
        latents = np.concatenate([self._draw(shot, switched) for shot in shots])
        pictures = self._pipeline.decode(latents, self._plan.settings)
        shown = None
        if self._plan.checked:
            told = zip(pictures, shots, strict=True)
            shown = 100.0 * float(np.mean([check(one, shot.prompt.text).ok for one, shot in told]))
        return _Drawn(latents, pictures, self._eyes.embed(pictures), shown)

    def _content(self, place: int, answer: Array) -> float:
        before = self._expected_looks[place]
        try:
            (loss,) = content_loss(before, self._look(place, answer))
        except NotFiniteError:
            return _MOST_LOSS
        return loss

    def _look(self, place: int, answer: Array) -> Array:
        """CLIP's view, [1, d], of the picture that an answer to one of the calls speaks of.

        Small where the decoder permits: a large one takes longer than the UNet's call.
        """
        latents = self._plan.guidance.clean(self._plan.calls[place], answer)
        if self._plan.any_size:
            latents = shrunk(latents)
        return self._eyes.embed(self._pipeline.decode(latents, self._plan.settings))

    def _draw(self, shot: Shot, switched: Collection[str]) -> Array:
        """Denoises a picture with the switched UNet; latents [1, 4, h/8, w/8]."""

        def unet(sample: Array, timestep: float, encoder_hidden_states: Array) -> Array:
            step = np.full_like(self._timestep, round(timestep))
            names = ("sample", "timestep", "encoder_hidden_states")
            inputs = dict(zip(names, (sample, step, encoder_hidden_states), strict=True))
            return self.board.ask(inputs, switched)

        return denoise_shot(self._pipeline, shot, self._plan.settings, unet)


def noise_share(reference: Array, value: Array) -> float:
    """The power of the difference by that of the reference, 10^(-SQNR/10), and no more than 1e6."""
    noise = np.square(reference - value, dtype=np.float64).sum()
    share = noise / np.square(reference, dtype=np.float64).sum()
    return float(np.nan_to_num(share, nan=OVERFLOWED).clip(max=OVERFLOWED))


def decibels(share: float) -> float:
    """The SQNR of a share of noise, 100 dB at most."""
    return -10 * log10(max(share, 1e-10))


def content_loss(before: Array, after: Array) -> tuple[float, ...]:
    """One minus the cosine of embeddings, pair by pair; both float [n, d]."""
    return tuple(float(1 - one) for one in clip_similarities(before, after))
