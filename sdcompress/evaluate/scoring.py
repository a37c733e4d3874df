"""Scores the pictures of several variants, the models for it loaded once."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from sdcompress.evaluate.clip_score import Clip
from sdcompress.evaluate.comparing import Likeness, compare_pixels
from sdcompress.evaluate.looking import Instruments, look_at
from sdcompress.progress import Advance
from sdcompress.store import write_record


@dataclass(frozen=True)
class Exhibit:
    """The pictures of one variant, and the names of the files that their scores go to.

    `baseline` are the pictures that these are compared with; the baseline itself has none.
    """

    files: tuple[Path, ...]
    prompts: tuple[str, ...]
    seen: str
    baseline: tuple[Path, ...] = ()
    likeness: str | None = None

    def outputs(self) -> list[str]:
        """The files that `score_pictures` writes."""
        return [self.seen, self.likeness] if self.likeness else [self.seen]


def score_pictures(
    exhibits: Sequence[Exhibit], instruments: Instruments, folder: Path, on_picture: Advance
) -> None:
    """Writes those scores to `folder` that are not there, for `Seen.load` and as `Likeness`."""
    missing = [one for one in exhibits if not (folder / one.seen).exists()]
    unlike = [one for one in exhibits if one.likeness and not (folder / one.likeness).exists()]
    total = sum(len(one.files) for one in (*missing, *unlike))
    numbers = count(1)

    def advance() -> None:
        on_picture(next(numbers), total)

    if missing:
        clip = Clip(instruments.scorer)
        for one in missing:
            look_at(one.files, one.prompts, instruments, clip, advance).save(folder / one.seen)
    for one in unlike:
        found = compare_pixels(one.baseline, one.files, instruments, advance)
        write_record(folder / str(one.likeness), Likeness, found)
