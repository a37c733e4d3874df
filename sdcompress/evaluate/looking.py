"""Looks at the pictures of one variant: everything that needs only that variant's pictures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sdcompress.evaluate import fid
from sdcompress.evaluate.checker import METRICS as CHECKER_METRICS
from sdcompress.evaluate.checker import check_pictures
from sdcompress.evaluate.clip_score import Clip, ClipScorer
from sdcompress.evaluate.clip_score import metric as clip_metric
from sdcompress.evaluate.metrics import Metric
from sdcompress.evaluate.plugins import apply_plugin, load_plugin
from sdcompress.store import written_whole

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Instruments:
    """What pictures are looked at with."""

    scorer: ClipScorer
    checker: bool = False
    plugins: tuple[str, ...] = ()
    fid_features: Path | None = None
    lpips: Path | None = None

    def picture_metrics(self) -> tuple[Metric, ...]:
        """The metrics that give every picture a value of its own."""
        checked = CHECKER_METRICS if self.checker else ()
        return (
            clip_metric(self.scorer),
            *checked,
            *(load_plugin(name).metric for name in self.plugins),
        )


@dataclass(frozen=True)
class Seen:
    """What was found in the pictures of one variant.

    `scores` has the values of each picture metric, float64 [n], NaN where a prompt does not state
    the attribute; `embeddings` are CLIP's, float32 [n, d]; `features` those for FID, if wanted.
    """

    scores: dict[str, Array]
    embeddings: Array
    features: Array | None

    def save(self, file: Path) -> None:
        """Writes the .npz that `load` reads."""
        arrays = {f"score.{name}": values for name, values in self.scores.items()}
        arrays["embeddings"] = self.embeddings
        if self.features is not None:
            arrays["features"] = self.features
        with written_whole(file) as stream:
            np.savez(stream, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, file: Path) -> "Seen":
        """Reads what `save` wrote."""
        with np.load(file) as stored:
            scores = {
                name.removeprefix("score."): stored[name]
                for name in stored.files
                if name.startswith("score.")
            }
            features = stored["features"] if "features" in stored.files else None
            return cls(scores, stored["embeddings"], features)

    def first(self, count: int) -> "Seen":
        """The same of the first pictures only."""
        features = None if self.features is None else self.features[:count]
        scores = {name: values[:count] for name, values in self.scores.items()}
        return Seen(scores, self.embeddings[:count], features)


def look_at(
    files: Sequence[Path],
    prompts: Sequence[str],
    instruments: Instruments,
    clip: Clip,
    on_picture: Callable[[], None],
) -> Seen:
    """Looks at pictures and their prompts with all instruments."""
    seen = clip.look(files, prompts, on_picture)
    scores = {"clip_score": seen.scores}
    if instruments.checker:
        checked = check_pictures(files, prompts)
        scores |= {name: np.array(values, np.float64) for name, values in checked.items()}
    for name in instruments.plugins:
        scores[name] = apply_plugin(load_plugin(name), files, prompts)
    wanted = instruments.fid_features
    return Seen(scores, seen.embeddings, fid.features(files, wanted) if wanted else None)
