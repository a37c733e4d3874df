"""Puts the pictures of both sides, and what was found of each pair, together."""

import shutil
from collections.abc import Sequence
from math import isfinite
from pathlib import Path

from sdcompress.evaluate.clip_similarity import clip_similarities
from sdcompress.evaluate.comparing import Likeness
from sdcompress.evaluate.looking import Seen
from sdcompress.evaluate.pictures import Pictures, Shot
from sdcompress.evaluate.records import Sample

_FOLDERS = ("baseline", "compressed")


def pair_up(
    shots: Sequence[Shot],
    sides: Sequence[tuple[Pictures, Seen]],
    likeness: Likeness,
    folder: Path,
) -> tuple[Sample, ...]:
    """Copies both sides' pictures, the baseline's first, below `folder`; one sample for each shot.

    A picture metric that has no value for a prompt is left out of its sample.
    """
    for name in _FOLDERS:
        (folder / name).mkdir(parents=True)
    (before, seen_before), (after, seen_after) = sides
    similar = clip_similarities(seen_before.embeddings, seen_after.embeddings)
    samples = []
    for index, shot in enumerate(shots):
        copies = [folder / name / f"{index:05d}.png" for name in _FOLDERS]
        for pictures, copy in zip((before, after), copies, strict=True):
            shutil.copyfile(pictures.files[index], copy)
        likes = {name: values[index] for name, values in likeness.values.items()}
        samples.append(
            Sample(
                prompt=shot.prompt.text,
                negative_prompt=shot.prompt.negative or "",
                category=shot.prompt.category,
                seed=shot.seed,
                baseline=copies[0],
                candidate=copies[1],
                scores=_scores(seen_before, seen_after, index),
                likeness=likes | {"clip_similarity": float(similar[index])},
            )
        )
    return tuple(samples)


def _scores(baseline: Seen, candidate: Seen, index: int) -> dict[str, tuple[float, float]]:
    pairs = {
        name: (float(baseline.scores[name][index]), float(candidate.scores[name][index]))
        for name in baseline.scores
    }
    return {name: pair for name, pair in pairs.items() if all(map(isfinite, pair))}
