"""Draws the evaluation pictures of one pipeline, one picture for each prompt and seed."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sdcompress.prompts import Prompt
from sdcompress.runtime import Pipeline, Settings, save_png

_PRECISIONS = "execution_precisions.json"


@dataclass(frozen=True)
class Pictures:
    """Files in prompt order, and the precision in which each component was executed."""

    files: tuple[Path, ...]
    execution_precisions: dict[str, str]

    def save(self, folder: Path) -> None:
        """Writes what the picture files do not say themselves beside them."""
        text = json.dumps(self.execution_precisions)
        (folder / _PRECISIONS).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Pictures":
        """Finds the pictures that `draw_pictures` and `save` left in `folder`."""
        precisions = json.loads((folder / _PRECISIONS).read_text(encoding="utf-8"))
        return cls(tuple(sorted(folder.glob("*.png"))), precisions)


def draw_pictures(
    pipeline: Pipeline,
    prompts: Sequence[Prompt],
    seed: int,
    settings: Settings,
    folder: Path,
    on_picture: Callable[[int, int], None] | None = None,
) -> Pictures:
    """Writes `folder`/00000.png and so on; picture i uses seed + i.

    Pictures that are there, from a run that was killed, are not drawn again.
    """
    files = [folder / f"{index:05d}.png" for index in range(len(prompts))]
    done = sum(file.exists() for file in files)
    if on_picture and done:
        on_picture(done, len(prompts))
    for index, (prompt, file) in enumerate(zip(prompts, files, strict=True)):
        if file.exists():
            continue
        image = pipeline.generate(
            prompt.text,
            negative_prompt=prompt.negative or "",
            seed=seed + index,
            settings=settings,
        )
        save_png(image, file, {"prompt": prompt.text, "seed": str(seed + index)})
        done += 1
        if on_picture:
            on_picture(done, len(prompts))
    return Pictures(tuple(files), pipeline.execution_precisions())
