"""Judges a candidate against the baseline: pictures, CLIP score, fidelity, SQNR and footprint."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np

from sdcompress.evaluate.clip_score import ClipScorer, clip_scores
from sdcompress.evaluate.fidelity import psnr_db, ssim
from sdcompress.evaluate.footprint import measure_footprint
from sdcompress.evaluate.pictures import Pictures, draw_pictures
from sdcompress.evaluate.records import (
    ClipScore,
    Footprint,
    PairFidelity,
    Performance,
    Quality,
    Sample,
    Scores,
    UnetSqnr,
)
from sdcompress.evaluate.sqnr import load_calls, record_calls, save_calls, unet_sqnr
from sdcompress.evaluate.statistics import paired_difference
from sdcompress.progress import Advance
from sdcompress.prompts import Prompt
from sdcompress.runtime import Pipeline, Settings
from sdcompress.store import read_record, write_record

BASELINE_PRECISION = "f32"  # set outright: left alone, the CPU plugin executes in BF16 where it can


@dataclass(frozen=True)
class Contest:
    """The two pipelines under comparison and what both of them draw."""

    baseline: Path
    candidate: Path
    device: str
    settings: Settings
    prompts: tuple[Prompt, ...]
    seed: int
    scorer: ClipScorer

    def open(self, *, candidate: bool) -> Pipeline:
        """Loads one side: the baseline in f32, the candidate as the device would run it."""
        if candidate:
            return self._load(self.candidate, None)
        return self._load(self.baseline, BASELINE_PRECISION)

    def open_rounded(self, precision: str) -> Pipeline:
        """Loads the baseline in another execution precision."""
        return self._load(self.baseline, precision)

    def _load(self, folder: Path, precision: str | None) -> Pipeline:
        return Pipeline.load(
            folder, device=self.device, execution_precision=precision, verify="never"
        )


def draw_side(contest: Contest, candidate: bool, folder: Path, on_picture: Advance) -> None:
    """Draws the pictures of one side into `folder`, for `Pictures.load`."""
    pipeline, prompts = contest.open(candidate=candidate), contest.prompts
    drawn = draw_pictures(pipeline, prompts, contest.seed, contest.settings, folder, on_picture)
    drawn.save(folder)


def measure_sqnr(contest: Contest, prompts: int, folder: Path, on_call: Advance) -> UnetSqnr:
    """Measures the UNet output's SQNR in dB by timestep, over the first `prompts` prompts.

    The floor is that of the baseline itself in the candidate's execution precision. What is
    measured of a prompt is kept in `folder`, and not measured again.
    """
    baseline = contest.open(candidate=False)
    steps = len(baseline.plan(contest.settings))
    total, kept = 3 * prompts * steps, [*folder.glob("*.npz"), *folder.glob("*/*.json")]
    advance = _counting(on_call, steps * len(kept), total)
    files = [folder / f"{index:05d}.npz" for index in range(prompts)]
    for index, (prompt, file) in enumerate(zip(contest.prompts[:prompts], files, strict=True)):
        if file.exists():
            continue
        seed = contest.seed + index
        save_calls(record_calls(baseline, [prompt], seed, contest.settings, advance), file)
    del baseline
    candidate = contest.open(candidate=True)
    measured = _sqnr_over(files, candidate, folder / "candidate", advance)
    precision = candidate.execution_precisions("unet")["unet"]
    del candidate
    floor = {}
    if precision != BASELINE_PRECISION:
        rounded = contest.open_rounded(precision)
        floor = _sqnr_over(files, rounded, folder / "floor", advance)
    for file in files:
        file.unlink()
    on_call(total, total)
    return UnetSqnr(measured, floor)


def _counting(on_call: Advance, done: int, total: int) -> Callable[[], None]:
    """Tells what was done before, at once so that it does not count as speed; then counts on."""
    if done:
        on_call(done, total)
    numbers = count(done + 1)
    return lambda: on_call(next(numbers), total)


def _sqnr_over(
    files: Sequence[Path], pipeline: Pipeline, folder: Path, advance: Callable[[], None]
) -> dict[int, float]:
    """The mean of all prompts at each timestep; a prompt's own figures are kept in `folder`."""
    folder.mkdir(exist_ok=True)
    found = []
    for file in files:
        kept = folder / f"{file.stem}.json"
        if kept.exists():
            figures = read_record(kept, dict[int, float])
        else:
            figures = unet_sqnr(pipeline, load_calls(file), advance)
            write_record(kept, dict[int, float], figures)
        found.append(figures)
    return {step: float(np.mean([one[step] for one in found])) for step in found[0]}


def measure_performance(
    contest: Contest, images: int, folder: Path, on_process: Advance
) -> Performance:
    """Times `images` pictures of each side, the sides taking turns, each in a process of its own.

    Turns and the quickest of them keep what else the machine does out of the ratio. What is
    measured is kept in `folder`, and not measured again.
    """
    sides = {"baseline": contest.baseline, "candidate": contest.candidate}
    measured: dict[str, list[Footprint]] = {name: [] for name in sides}
    turns = [(name, folder / f"{name}-{turn}.json") for turn in range(images) for name in sides]
    done = sum(file.exists() for _, file in turns)
    if done:
        on_process(done, len(turns))
    for name, file in turns:
        if not file.exists():
            one = measure_footprint(
                sides[name],
                prompt=contest.prompts[0].text,
                settings=contest.settings,
                images=1,
                device=contest.device,
                execution_precision=BASELINE_PRECISION if name == "baseline" else None,
            )
            write_record(file, Footprint, one)
            done += 1
            on_process(done, len(turns))
        measured[name].append(read_record(file, Footprint))
    return Performance(**{name: Footprint.undisturbed(found) for name, found in measured.items()})


def score_pairs(
    contest: Contest, baseline: Pictures, candidate: Pictures, on_picture: Advance
) -> Scores:
    """Scores every pair of pictures."""
    texts = [prompt.text for prompt in contest.prompts]
    files = [*baseline.files, *candidate.files]
    scores = clip_scores(files, texts * 2, contest.scorer, on_picture=on_picture)
    before, after = np.split(scores, 2)
    samples = tuple(
        Sample(
            prompt=text,
            seed=contest.seed + index,
            baseline=pair[0],
            candidate=pair[1],
            clip_score_baseline=float(before[index]),
            clip_score_candidate=float(after[index]),
            psnr_db=psnr_db(*pair),
            ssim=ssim(*pair),
        )
        for index, (text, pair) in enumerate(
            zip(texts, zip(baseline.files, candidate.files, strict=True), strict=True)
        )
    )
    clip = ClipScore(
        baseline=float(before.mean()),
        candidate=float(after.mean()),
        difference=paired_difference(before, after),
        samples=len(texts),
        scorer=contest.scorer.name,
    )
    return Scores(clip, samples)


def summarize(clip: ClipScore, samples: Sequence[Sample], sqnr: UnetSqnr) -> Quality:
    """Puts the pairwise figures together."""
    psnr = [sample.psnr_db for sample in samples]
    similarity = [sample.ssim for sample in samples]
    return Quality(
        clip_score=clip,
        psnr_db=PairFidelity(float(np.mean(psnr)), min(psnr)),
        ssim=PairFidelity(float(np.mean(similarity)), min(similarity)),
        unet_sqnr=sqnr,
    )
