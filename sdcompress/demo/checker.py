"""Says whether a picture shows what its caption says. Rules only: no learning.

Pixels get the nearest colour of the palette; thin mixed edges are removed by a morphological
opening; what remains in one piece is an object. Its shape is the template with the largest overlap
after scaling, its size follows from its extent, relations from the centres.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from sdcompress.demo.grammar import BACKGROUNDS, COLOURS, SHAPES, Scene, SceneObject, parse
from sdcompress.demo.render import RADII, shape_mask

_NAMES = tuple(BACKGROUNDS)
_PALETTE = np.array([BACKGROUNDS[name] for name in _NAMES], dtype=np.float32)
_MIN_PIXELS = 40
_MIN_OVERLAP = 0.70
_GRID = 48

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Found:
    """One object seen in a picture; `x`, `y` are its centre and `radius` its extent in pixels."""

    colour: str
    shape: str
    size: str
    x: float
    y: float
    radius: float
    overlap: float


@dataclass(frozen=True)
class CheckResult:
    """The verdict as a whole and attribute by attribute (True where nothing was stated)."""

    count: bool
    colour: bool
    shape: bool
    size: bool
    relation: bool
    background: bool

    @property
    def ok(self) -> bool:
        return all((self.count, self.colour, self.shape, self.size, self.relation, self.background))


def check(image: Image.Image | Array, caption: str | Scene) -> CheckResult:
    """Compares a picture (RGB, 128 x 128) with its caption.

    Raises ValueError for a caption that is not of the demo's grammar.
    """
    wanted = parse(caption) if isinstance(caption, str) else caption
    background, found = look(np.asarray(image))
    ordered = _match(wanted.objects, found)
    pairs = list(zip(wanted.objects, ordered, strict=False))
    return CheckResult(
        count=len(found) == len(wanted.objects),
        colour=len(ordered) == len(wanted.objects)
        and all(want.colour == got.colour for want, got in pairs),
        shape=len(ordered) == len(wanted.objects)
        and all(want.shape == got.shape for want, got in pairs),
        size=all(want.size in (None, got.size) for want, got in pairs),
        relation=wanted.relation is None or _relation(ordered) == wanted.relation,
        background=wanted.background in (None, background),
    )


def look(pixels: Array) -> tuple[str, tuple[Found, ...]]:
    """Finds the background's colour and the objects of a picture uint8 [h, w, 3]."""
    values = pixels.astype(np.float32)
    distances = np.linalg.norm(values[:, :, None, :] - _PALETTE, axis=-1)  # [h, w, colours]
    labels = distances.argmin(axis=-1)
    edges = (labels[:2], labels[-2:], labels[:, :2], labels[:, -2:])
    border = np.concatenate([edge.ravel() for edge in edges])
    background = int(np.bincount(border, minlength=len(_NAMES)).argmax())
    found = []
    to_background = distances[..., background]
    for index, name in enumerate(_NAMES):
        if index == background or name not in COLOURS:
            continue
        core = ndimage.binary_opening(labels == index, np.ones((3, 3)))
        pieces, count = ndimage.label(core)
        for piece in range(1, count + 1):
            mask = pieces == piece
            if mask.sum() >= _MIN_PIXELS:
                found.append(_identify(name, mask, distances[..., index], to_background))
    return _NAMES[background], tuple(found)


def _identify(name: str, core: Array, to_own: Array, to_background: Array) -> Found:
    near = ndimage.binary_dilation(core, iterations=2)
    mask = near & (to_own < to_background)
    rows, columns = np.nonzero(mask)
    top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    normal = _normalize(mask[top:bottom, left:right])
    overlaps = {shape: _overlap(normal, template) for shape, template in _templates().items()}
    shape = max(overlaps, key=overlaps.__getitem__)
    if overlaps[shape] < _MIN_OVERLAP:
        shape = "unknown"
    extent = _extent(shape, mask.sum(), max(bottom - top, right - left))
    size = min(RADII, key=lambda known: abs(math.log(extent / RADII[known])))
    x, y = (left + right) / 2, (top + bottom) / 2
    return Found(name, shape, size, float(x), float(y), float(extent), max(overlaps.values()))


def _extent(shape: str, area: int, longest: int) -> float:
    """Returns the radius that a shape of this area was drawn with."""
    if shape == "unknown":
        return longest / 2
    return math.sqrt(area / _unit_areas()[shape])


def _normalize(mask: Array) -> Array:
    """Scales a cropped mask to the grid, its aspect ratio kept."""
    height, width = mask.shape
    side = max(height, width)
    square = np.zeros((side, side), dtype=np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = mask * 255
    image = Image.fromarray(square).resize((_GRID, _GRID), Image.Resampling.BILINEAR)
    return np.asarray(image) > 127


@cache
def _templates() -> dict[str, Array]:
    templates = {}
    for shape in SHAPES:
        mask = np.asarray(shape_mask(shape, 96)) > 127
        rows, columns = np.nonzero(mask)
        templates[shape] = _normalize(
            mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        )
    return templates


@cache
def _unit_areas() -> dict[str, float]:
    return {s: (np.asarray(shape_mask(s, 96)) / 255).sum() / 47.5**2 for s in SHAPES}


def _overlap(one: Array, other: Array) -> float:
    return float((one & other).sum() / max((one | other).sum(), 1))


def _match(wanted: tuple[SceneObject, ...], found: tuple[Found, ...]) -> list[Found]:
    """Puts the objects found into the caption's order, by colour first and then by shape."""
    left = list(found)
    ordered = []
    for want in wanted:
        if not left:
            break
        best = max(left, key=lambda got: (got.colour == want.colour, got.shape == want.shape))
        left.remove(best)
        ordered.append(best)
    return ordered


def _relation(ordered: list[Found]) -> str | None:
    if len(ordered) != 2:
        return None
    dx, dy = ordered[0].x - ordered[1].x, ordered[0].y - ordered[1].y
    if abs(dy) > abs(dx):
        return "above" if dy < 0 else "below"
    return "left of" if dx < 0 else "right of"
