"""The demo's world: scenes of one or two coloured shapes, and the captions that describe them.

A caption states part of a scene. What it leaves out is free, except that an unstated background is
white. One scene in ten (by a hash of its content) is held out from training.
"""

import random
import re
import zlib
from dataclasses import dataclass

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 40),
    "orange": (255, 140, 0),
    "yellow": (250, 225, 30),
    "green": (30, 160, 60),
    "cyan": (60, 210, 225),
    "blue": (35, 70, 215),
    "purple": (125, 40, 160),
    "pink": (250, 130, 190),
}
NEUTRALS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "gray": (135, 135, 135),
    "black": (15, 15, 15),
}
BACKGROUNDS = COLOURS | NEUTRALS
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "diamond", "ring")
SIZES = ("small", "medium", "large")
RELATIONS = ("above", "below", "left of", "right of")
OPPOSITE = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}

_OPENINGS = ("", "", "a photo of ", "a picture of ", "an image of ", "a drawing of ", "there is ")


@dataclass(frozen=True)
class SceneObject:
    """One shape. A size of None is not stated."""

    colour: str
    shape: str
    size: str | None = None

    def words(self) -> str:
        """Returns the noun phrase, for example "a small red circle"."""
        words = [word for word in (self.size, self.colour, self.shape) if word]
        article = "an" if words[0][0] in "aeiou" else "a"
        return " ".join([article, *words])


@dataclass(frozen=True)
class Scene:
    """What a caption states: objects, `relation` of the first to the second, and background."""

    objects: tuple[SceneObject, ...]
    relation: str | None = None
    background: str | None = None

    def key(self) -> str:
        """Returns a canonical text; scenes with equal keys look alike up to position."""
        return f"{self.objects}|{self.relation}|{self.background or 'white'}"

    @property
    def held_out(self) -> bool:
        return zlib.crc32(self.key().encode()) % 10 == 0


def sample_scene(rng: random.Random, *, objects: int | None = None) -> Scene:
    """Draws a scene; its objects never share a colour with each other or with the background."""
    count = objects or rng.choice((1, 2, 2))
    colours = rng.sample(sorted(COLOURS), count)
    things = tuple(
        SceneObject(colour, rng.choice(SHAPES), rng.choice((None, *SIZES))) for colour in colours
    )
    background = None
    if rng.random() < 0.4:
        background = rng.choice([name for name in BACKGROUNDS if name not in colours])
    return Scene(things, rng.choice(RELATIONS) if count == 2 else None, background)


def sample_split(rng: random.Random, *, held_out: bool, objects: int | None = None) -> Scene:
    """Draws a scene from the training part or from the held-out part of the world."""
    while True:
        scene = sample_scene(rng, objects=objects)
        if scene.held_out == held_out:
            return scene


def caption(scene: Scene, rng: random.Random) -> str:
    """Describes a scene in one of several phrasings."""
    text = rng.choice(_OPENINGS) + scene.objects[0].words()
    if scene.relation:
        relation = scene.relation
        if relation.endswith(" of") and rng.random() < 0.5:
            relation = f"to the {relation}"
        text += f" {relation} {scene.objects[1].words()}"
    if scene.background:
        article = "an" if scene.background[0] in "aeiou" else "a"
        text += f" on {article} {scene.background} background"
    return text


_THING = rf"an? (?:({'|'.join(SIZES)}) )?({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
_CAPTION = re.compile(
    rf"^(?:(?:an? (?:photo|picture|image|drawing) of|there is) )?{_THING}"
    rf"(?: (?:to the )?({'|'.join(RELATIONS)}) {_THING})?"
    rf"(?: on an? ({'|'.join(BACKGROUNDS)}) background)?$"
)


def parse(text: str) -> Scene:
    """Reads a caption back. Raises ValueError when it is not of the grammar."""
    match = _CAPTION.match(text.strip().lower())
    if not match:
        raise ValueError(f"not a caption of the demo's grammar: '{text}'")
    size, colour, shape, relation, size2, colour2, shape2, background = match.groups()
    things = [SceneObject(colour, shape, size)]
    if relation:
        things.append(SceneObject(colour2, shape2, size2))
    return Scene(tuple(things), relation, background)


def change_one_attribute(scene: Scene, rng: random.Random) -> Scene:
    """Returns a scene that differs in exactly one stated attribute: a hard distractor."""
    used = {thing.colour for thing in scene.objects} | {scene.background}
    changes: list[Scene] = []
    for index, thing in enumerate(scene.objects):
        colour = rng.choice([name for name in COLOURS if name not in used])
        shape = rng.choice([name for name in SHAPES if name != thing.shape])
        variants = [SceneObject(colour, thing.shape, thing.size)]
        variants.append(SceneObject(thing.colour, shape, thing.size))
        if thing.size:
            size = rng.choice([name for name in SIZES if name != thing.size])
            variants.append(SceneObject(thing.colour, thing.shape, size))
        for variant in variants:
            things = list(scene.objects)
            things[index] = variant
            changes.append(Scene(tuple(things), scene.relation, scene.background))
    if scene.relation:
        other = rng.choice([name for name in RELATIONS if name != scene.relation])
        changes.append(Scene(scene.objects, other, scene.background))
    if scene.background:
        other = rng.choice([name for name in BACKGROUNDS if name not in used])
        changes.append(Scene(scene.objects, scene.relation, other))
    return rng.choice(changes)
