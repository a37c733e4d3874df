"""Training data, made as it is needed: rendered scenes and their captions, by seed."""

import random
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdcompress.demo.grammar import Scene, caption, sample_split
from sdcompress.demo.render import Placed, draw, place

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Example:
    """One scene, what is said of it, where it lies, what it looks like (uint8 [128, 128, 3])."""

    scene: Scene
    caption: str
    places: tuple[Placed, ...]
    pixels: Array


def example(seed: int, *, held_out: bool = False) -> Example:
    """Makes the example with this seed; the same seed gives the same example everywhere."""
    rng = random.Random(seed)  # noqa: S311 - reproducible, not secret
    scene = sample_split(rng, held_out=held_out)
    text = caption(scene, rng)
    places = tuple(place(scene, rng))
    return Example(scene, text, places, np.asarray(draw(scene, places)))


def batch(first: int, count: int, *, held_out: bool = False) -> tuple[list[Example], Array]:
    """Makes `count` examples from `first` on, and their pixels float32 [n, 3, 128, 128], -1..1."""
    examples = [example(first + index, held_out=held_out) for index in range(count)]
    pixels = np.stack([one.pixels for one in examples]).transpose(0, 3, 1, 2)
    return examples, pixels.astype(np.float32) / 127.5 - 1.0
