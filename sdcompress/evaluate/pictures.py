"""Draws the evaluation's pictures, each kept under what was asked for: none is drawn twice."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from sdcompress.progress import Advance
from sdcompress.prompts import Prompt
from sdcompress.runtime import Job, Pipeline, Settings, save_png
from sdcompress.runtime.arrays import Float32
from sdcompress.store import written_whole

_PRECISIONS = "execution_precisions.json"
BASELINE_PRECISION = "f32"  # set outright: left alone, the CPU plugin executes in BF16 where it can


@dataclass(frozen=True)
class Variant:
    """One way to draw: a pipeline folder, how it is executed, and the settings.

    An execution precision of None is the device's choice, which is how a bundle is used.
    """

    folder: Path
    device: str
    execution_precision: str | None
    settings: Settings

    def open(self) -> Pipeline:
        """Loads the pipeline."""
        return Pipeline.load(
            self.folder,
            device=self.device,
            execution_precision=self.execution_precision,
            verify="never",
        )


@dataclass(frozen=True)
class Shot:
    """What one picture is asked for; the negative prompt is filled in."""

    prompt: Prompt
    seed: int

    @property
    def file_name(self) -> str:
        """The same for the same prompt, negative prompt and seed."""
        asked = json.dumps([self.prompt.text, self.prompt.negative or "", self.seed])
        return f"{hashlib.sha256(asked.encode()).hexdigest()[:24]}.png"


@dataclass(frozen=True)
class Pictures:
    """Files in the order of their shots, and the precision each component was executed in."""

    files: tuple[Path, ...]
    execution_precisions: dict[str, str]

    @classmethod
    def load(cls, folder: Path, shots: Sequence[Shot]) -> "Pictures":
        """Finds the pictures that `draw_pictures` left in `folder`."""
        precisions = json.loads((folder / _PRECISIONS).read_text(encoding="utf-8"))
        return cls(tuple(folder / shot.file_name for shot in shots), precisions)


def picture_files(shots: Sequence[Shot]) -> list[str]:
    """The names of the files that `draw_pictures` writes."""
    return [_PRECISIONS, *(shot.file_name for shot in shots)]


def draw_pictures(
    variant: Variant, shots: Sequence[Shot], folder: Path, on_picture: Advance
) -> None:
    """Draws into `folder` those pictures that are not there."""
    missing = [shot for shot in shots if not (folder / shot.file_name).exists()]
    done = len(shots) - len(missing)
    if done:
        on_picture(done, len(shots))  # at once, so that it does not count as speed
    pipeline, settings = variant.open(), variant.settings
    known: dict[str, Float32] = {}  # the embedding of the last negative prompt
    for shot in missing:
        job = Job(shot.prompt.text, shot.prompt.negative or "", shot.seed)
        texts = pipeline.prompts.encode_jobs([job], settings, known)
        known = {text: one for text, one in known.items() if text == job.negative_prompt}
        latents = pipeline.denoise_jobs([job], settings, texts=texts)
        image = Image.fromarray(pipeline.decode(latents, settings)[0])
        told = {"prompt": shot.prompt.text, "seed": str(shot.seed)}
        save_png(image, folder / shot.file_name, told)
        done += 1
        on_picture(done, len(shots))
    with written_whole(folder / _PRECISIONS) as stream:
        found = pipeline.execution_precisions(settings=settings)
        stream.write(json.dumps(found).encode())
