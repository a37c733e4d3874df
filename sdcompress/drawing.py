"""Draws pictures from a bundle for the command line; needs the runtime's packages only."""

from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import click

from sdcompress.runtime import InputError, Pipeline, save_png

_MAX_SIDE = 4096


def draw(
    bundle: Path,
    prompt: str,
    output: Path,
    *,
    seed: int,
    count: int,
    negative_prompt: str = "",
    device: str = "CPU",
    size: str | None = None,
    **settings: Any,
) -> Iterator[Path]:
    """Draws `count` pictures with consecutive seeds and yields each file once it is written.

    Settings that are None fall back to those the bundle was evaluated with. Raises InputError
    for a malformed size or an output folder that does not exist.
    """
    if not output.parent.is_dir():
        raise InputError(f"{output}: the folder {output.parent} does not exist")
    if output.suffix.lower() != ".png":
        raise InputError(f"{output}: pictures are written as PNG; give a name ending in .png")
    if size is not None:
        settings["width"], settings["height"] = _parse_size(size)
    pipeline = Pipeline.load(bundle, device=device)
    given = {name: value for name, value in settings.items() if value is not None}
    resolved = replace(pipeline.settings, **given)
    for index in range(count):
        calls = len(pipeline.plan(resolved).timesteps)
        with click.progressbar(length=calls, label=f"seed {seed + index}") as bar:
            image = pipeline.generate(
                prompt,
                negative_prompt=negative_prompt,
                seed=seed + index,
                settings=resolved,
                on_step=lambda *_, bar=bar: bar.update(1),
            )
        file = output if count == 1 else output.with_stem(f"{output.stem}_{index:03d}")
        told = {"prompt": prompt, "negative_prompt": negative_prompt, "seed": seed + index}
        told |= {field.name: getattr(resolved, field.name) for field in fields(resolved)}
        told |= {"width": image.width, "height": image.height, "bundle": bundle.name}
        save_png(image, file, {name: str(value) for name, value in told.items()})
        yield file


def _parse_size(size: str) -> tuple[int, int]:
    width, separator, height = size.lower().partition("x")
    if not separator or not width.isdecimal() or not height.isdecimal():
        raise InputError(f"--size {size}: expected WIDTHxHEIGHT in pixels, for example 512x512")
    if max(int(width), int(height)) > _MAX_SIDE:
        raise InputError(f"--size {size}: at most {_MAX_SIDE} pixels a side")
    return int(width), int(height)
