"""Scorers that other packages bring along: aesthetic or preference models, through entry points.

A package names a factory in its metadata:

    [project.entry-points."sdcompress.scorers"]
    aesthetic = "my_package:load"

Called without arguments, the factory returns a `PictureScorer`. A recipe asks for it by name in
`evaluate.scorers`; what is merely installed is not used.
"""

import difflib
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from sdcompress.errors import EvaluationError
from sdcompress.evaluate.metrics import Metric

Array = np.ndarray[Any, Any]
GROUP = "sdcompress.scorers"
TAKEN = ("clip_score", "clip_similarity", "cmmd", "fid", "lpips", "ms_ssim", "psnr_db", "ssim")


@runtime_checkable
class PictureScorer(Protocol):
    """Gives every picture a value. `metric` is of the kind "picture" and has the scorer's name."""

    metric: Metric

    def __call__(self, files: Sequence[Path], prompts: Sequence[str]) -> Array:
        """One value for each picture file and its prompt, float [n]."""


def find_plugins(names: Sequence[str]) -> tuple[EntryPoint, ...]:
    """Finds scorers by name, without loading them. Raises EvaluationError for an unknown one."""
    known = {point.name: point for point in entry_points(group=GROUP)}
    for name in names:
        if name in TAKEN or name.startswith("checker"):
            raise EvaluationError(f"evaluate.scorers: '{name}' is the name of a metric of our own")
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean '{nearest[0]}'?" if nearest else ""
            installed = ", ".join(sorted(known)) or "none"
            raise EvaluationError(
                f"evaluate.scorers: no installed package brings a scorer '{name}' (installed: "
                f"{installed}){hint}"
            )
    return tuple(known[name] for name in names)


def load_plugin(name: str) -> PictureScorer:
    """Loads a scorer. Raises EvaluationError when its package does not keep to the protocol."""
    (point,) = find_plugins([name])
    try:
        scorer = point.load()()
    except Exception as error:
        raise EvaluationError(f"the scorer '{name}' ({point.value}) fails: {error}") from error
    if not isinstance(scorer, PictureScorer) or not isinstance(scorer.metric, Metric):
        raise EvaluationError(f"the scorer '{name}' ({point.value}) returns no PictureScorer")
    if scorer.metric.kind != "picture" or scorer.metric.name != name:
        raise EvaluationError(
            f"the scorer '{name}' ({point.value}) has a metric '{scorer.metric.name}' of kind "
            f"'{scorer.metric.kind}'; it must have the scorer's name and be of kind 'picture'"
        )
    return scorer


def apply_plugin(scorer: PictureScorer, files: Sequence[Path], prompts: Sequence[str]) -> Array:
    """The scorer's values, float64 [n]. Raises EvaluationError when they are none."""
    name = scorer.metric.name
    try:
        values = np.asarray(scorer(files, prompts), np.float64)
    except Exception as error:
        raise EvaluationError(f"the scorer '{name}' fails: {error}") from error
    if values.shape != (len(files),) or not np.isfinite(values).all():
        raise EvaluationError(
            f"the scorer '{name}' returns values of shape {values.shape} for {len(files)} pictures "
            "or values that are not finite"
        )
    return values
