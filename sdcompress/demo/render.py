"""The ground truth: draws a scene with Pillow, anti-aliased by supersampling."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from sdcompress.demo.grammar import BACKGROUNDS, COLOURS, SIZES, Scene

SIZE = 128
RADII = {"small": 13.0, "medium": 20.0, "large": 28.0}  # half the shape's extent, in pixels
_SCALE = 4  # supersampling
_MARGIN = 3.0
_GAP = 4.0

Point = tuple[float, float]
Ink = int | tuple[int, int, int]


@dataclass(frozen=True)
class Placed:
    """Where one object is drawn: centre and half extent in pixels."""

    x: float
    y: float
    radius: float


def render(scene: Scene, rng: random.Random) -> Image.Image:
    """Draws a scene as RGB, 128 x 128; what the scene leaves open is drawn from `rng`."""
    return draw(scene, place(scene, rng))


def draw(scene: Scene, places: Sequence[Placed]) -> Image.Image:
    """Draws a scene's objects where `places` says, as RGB, 128 x 128."""
    background = BACKGROUNDS[scene.background or "white"]
    canvas = Image.new("RGB", (SIZE * _SCALE, SIZE * _SCALE), background)
    pen = ImageDraw.Draw(canvas)
    for thing, placed in zip(scene.objects, places, strict=True):
        _draw_shape(pen, thing.shape, placed, COLOURS[thing.colour], background)
    return canvas.resize((SIZE, SIZE), Image.Resampling.BOX)


def shape_mask(shape: str, size: int) -> Image.Image:
    """Draws one shape in white on black, filling a square of `size` pixels."""
    canvas = Image.new("L", (size * _SCALE, size * _SCALE), 0)
    placed = Placed(size / 2, size / 2, size / 2 - 0.5)
    _draw_shape(ImageDraw.Draw(canvas), shape, placed, 255, 0)
    return canvas.resize((size, size), Image.Resampling.BOX)


def place(scene: Scene, rng: random.Random) -> list[Placed]:
    """Chooses sizes and positions that show the scene: inside the picture, without touching."""
    radii = [
        RADII[thing.size or rng.choice(SIZES)] * rng.uniform(0.95, 1.05) for thing in scene.objects
    ]
    if scene.relation is None:
        reach = radii[0] + _MARGIN
        x, y = rng.uniform(reach, SIZE - reach), rng.uniform(reach, SIZE - reach)
        return [Placed(x, y, radii[0])]
    if scene.relation in ("above", "left of"):
        first, second = _along(radii, rng)
    else:
        second, first = _along(radii[::-1], rng)
    crosswise = _across(radii, abs(first - second), rng)
    if scene.relation in ("above", "below"):
        return [Placed(crosswise[0], first, radii[0]), Placed(crosswise[1], second, radii[1])]
    return [Placed(first, crosswise[0], radii[0]), Placed(second, crosswise[1], radii[1])]


def _along(radii: list[float], rng: random.Random) -> list[float]:
    """Places two objects one after the other along the relation's axis, without touching."""
    room = max(SIZE - 2 * _MARGIN - _GAP - 2 * sum(radii), 0.0)
    before, between, _ = _partition(room, rng)
    first = _MARGIN + before + radii[0]
    return [first, first + radii[0] + _GAP + between + radii[1]]


def _partition(room: float, rng: random.Random) -> tuple[float, float, float]:
    low, high = sorted((rng.random(), rng.random()))
    return room * low, room * (high - low), room * (1 - high)


def _across(radii: list[float], distance: float, rng: random.Random) -> list[float]:
    """Places them across the axis, offset by less than half their distance along it."""
    first = rng.uniform(radii[0] + _MARGIN, SIZE - radii[0] - _MARGIN)
    low = max(radii[1] + _MARGIN, first - distance / 2)
    high = min(SIZE - radii[1] - _MARGIN, first + distance / 2)
    return [first, rng.uniform(min(low, high), max(low, high))]


def _draw_shape(
    pen: ImageDraw.ImageDraw, shape: str, placed: Placed, colour: Ink, background: Ink
) -> None:
    x, y, r = placed.x * _SCALE, placed.y * _SCALE, placed.radius * _SCALE

    def at(points: list[Point]) -> list[Point]:
        return [(x + px * r, y + py * r) for px, py in points]

    if shape in ("circle", "ring"):
        pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)
        if shape == "ring":
            hole = 0.5 * r
            pen.ellipse((x - hole, y - hole, x + hole, y + hole), fill=background)
    else:
        pen.polygon(at(_OUTLINES[shape]), fill=colour)


def _star() -> list[Point]:
    points = []
    for index in range(10):
        angle = math.pi * (index / 5 - 0.5)
        reach = 1.08 if index % 2 == 0 else 0.45
        points.append((reach * math.cos(angle), reach * math.sin(angle) + 0.06))
    return points


def _heart() -> list[Point]:
    points = []
    for index in range(60):
        t = 2 * math.pi * index / 60
        px = 16 * math.sin(t) ** 3
        py = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((px / 16, -(py + 2.5) / 15))
    return points


def _cross() -> list[Point]:
    arm = 0.36
    quarter = [(-arm, -1.0), (arm, -1.0), (arm, -arm)]  # the upper arm, clockwise
    points = []
    for _ in range(4):
        points += quarter
        quarter = [(-y, x) for x, y in quarter]
    return points


_OUTLINES: dict[str, list[Point]] = {
    "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
    "triangle": [(0.0, -1.0), (1.0, 0.85), (-1.0, 0.85)],
    "star": _star(),
    "heart": _heart(),
    "cross": _cross(),
    "diamond": [(0.0, -1.0), (0.8, 0.0), (0.0, 1.0), (-0.8, 0.0)],
}
