"""The checker against the renderer, which is the ground truth."""

import random

import numpy as np
import pytest
from PIL import Image, ImageFilter

from sdcompress.demo.checker import check, look
from sdcompress.demo.grammar import Scene, change_one_attribute, parse, sample_split
from sdcompress.demo.render import SIZE, render

COUNT = 250


@pytest.fixture(scope="module")
def renders() -> list[tuple[Scene, Image.Image]]:
    rng = random.Random(11)
    scenes = [sample_split(rng, held_out=True) for _ in range(COUNT)]
    return [(scene, render(scene, rng)) for scene in scenes]


def share(verdicts: list[bool]) -> float:
    return sum(verdicts) / len(verdicts)


def test_renders_are_rgb_and_the_same_for_the_same_seed() -> None:
    scene = parse("a small red circle above a large blue square on a yellow background")
    one, two = (render(scene, random.Random(5)) for _ in range(2))
    assert one.size == (SIZE, SIZE)
    assert one.mode == "RGB"
    assert one.tobytes() == two.tobytes()
    assert one.tobytes() != render(scene, random.Random(6)).tobytes()


def test_held_out_renders_are_accepted(renders: list[tuple[Scene, Image.Image]]) -> None:
    assert share([check(image, scene).ok for scene, image in renders]) >= 0.98


def test_captions_off_by_one_attribute_are_refused(
    renders: list[tuple[Scene, Image.Image]],
) -> None:
    rng = random.Random(12)
    wrong = [check(image, change_one_attribute(scene, rng)).ok for scene, image in renders]
    assert share(wrong) <= 0.02


def test_slightly_soft_and_noisy_pictures_are_still_read(
    renders: list[tuple[Scene, Image.Image]],
) -> None:
    noise = np.random.default_rng(0)
    verdicts = []
    for scene, image in renders[:100]:
        soft = np.asarray(image.filter(ImageFilter.GaussianBlur(1.0)), dtype=np.float32)
        rough = np.clip(soft + noise.normal(0, 6, soft.shape), 0, 255).astype(np.uint8)
        verdicts.append(check(rough, scene).ok)
    assert share(verdicts) >= 0.9


def test_noise_and_empty_pictures_are_refused() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)
    empty = np.full((SIZE, SIZE, 3), 255, dtype=np.uint8)
    for picture in (noise, empty):
        assert not check(picture, "a red circle").ok
    assert look(empty) == ("white", ())


@pytest.mark.parametrize(
    ("caption", "attribute"),
    [
        ("a large blue circle on a yellow background", "colour"),
        ("a large red star on a yellow background", "shape"),
        ("a small red circle on a yellow background", "size"),
        ("a large red circle on a pink background", "background"),
        ("a large red circle above a blue star on a yellow background", "count"),
    ],
)
def test_the_verdict_names_the_attribute_that_is_wrong(caption: str, attribute: str) -> None:
    image = render(parse("a large red circle on a yellow background"), random.Random(0))
    verdict = check(image, caption)
    assert not verdict.ok
    assert not getattr(verdict, attribute)


@pytest.mark.parametrize("relation", ["above", "below", "left of", "right of"])
def test_only_the_true_relation_is_accepted(relation: str) -> None:
    image = render(parse(f"a red circle {relation} a blue star"), random.Random(1))
    for stated in ("above", "below", "left of", "right of"):
        verdict = check(image, f"a red circle {stated} a blue star")
        assert verdict.relation == (stated == relation)
