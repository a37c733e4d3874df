"""The demo's captions: what is written can be read back, and the splits do not touch."""

import json
import random
from pathlib import Path

import pytest

from sdcompress.demo.grammar import (
    BACKGROUNDS,
    COLOURS,
    RELATIONS,
    SHAPES,
    SIZES,
    caption,
    change_one_attribute,
    parse,
    sample_scene,
    sample_split,
)

CALIBRATION = Path(__file__).parents[1] / "calibration"


def prompts(name: str) -> list[dict[str, str]]:
    lines = (CALIBRATION / f"{name}.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_the_world_is_as_large_as_promised() -> None:
    assert len(COLOURS) >= 8
    assert len(SHAPES) >= 8
    assert len(SIZES) == 3
    assert len(RELATIONS) == 4


def test_every_caption_is_read_back_as_its_scene() -> None:
    rng = random.Random(1)
    for _ in range(500):
        scene = sample_scene(rng)
        assert parse(caption(scene, rng)) == scene


def test_the_same_seed_gives_the_same_captions() -> None:
    def captions(seed: int) -> list[str]:
        rng = random.Random(seed)
        return [caption(sample_scene(rng), rng) for _ in range(20)]

    assert captions(3) == captions(3)
    assert captions(3) != captions(4)


def test_one_scene_is_said_in_several_ways() -> None:
    rng = random.Random(0)
    scene = parse("a small red circle left of a large blue square on a yellow background")
    said = {caption(scene, rng) for _ in range(100)}
    assert len(said) >= 8
    assert {parse(text) for text in said} == {scene}


def test_other_text_is_refused_with_the_text_in_the_message() -> None:
    with pytest.raises(ValueError, match="astronaut riding a horse"):
        parse("an astronaut riding a horse")


def test_colours_of_a_scene_differ_so_that_objects_can_be_told_apart() -> None:
    rng = random.Random(2)
    for _ in range(500):
        scene = sample_scene(rng)
        colours = [thing.colour for thing in scene.objects] + [scene.background or "white"]
        assert len(set(colours)) == len(colours)


def test_a_distractor_differs_in_exactly_one_stated_attribute() -> None:
    rng = random.Random(3)
    for _ in range(300):
        scene = sample_scene(rng)
        other = change_one_attribute(scene, rng)
        differences = [scene.relation != other.relation, scene.background != other.background]
        for one, two in zip(scene.objects, other.objects, strict=True):
            differences += [one.colour != two.colour, one.shape != two.shape, one.size != two.size]
        assert sum(differences) == 1


def test_training_scenes_are_never_held_out() -> None:
    rng = random.Random(4)
    assert not any(sample_split(rng, held_out=False).held_out for _ in range(200))
    assert all(sample_split(rng, held_out=True).held_out for _ in range(200))


def test_prompt_files_are_of_the_grammar_and_disjoint() -> None:
    calibration, evaluation = prompts("demo"), prompts("demo_evaluation")
    assert len(calibration) == 256
    assert len(evaluation) >= 200
    for line in calibration + evaluation:
        count = {"one object": 1, "two objects": 2}[line["category"]]
        assert len(parse(line["prompt"]).objects) == count
    assert not {line["prompt"] for line in calibration} & {line["prompt"] for line in evaluation}


def test_evaluation_prompts_are_held_out_and_calibration_prompts_are_not() -> None:
    assert all(parse(line["prompt"]).held_out for line in prompts("demo_evaluation"))
    assert not any(parse(line["prompt"]).held_out for line in prompts("demo"))


def test_every_background_occurs_in_the_calibration_prompts() -> None:
    seen = {parse(line["prompt"]).background or "white" for line in prompts("demo")}
    assert seen == set(BACKGROUNDS)
