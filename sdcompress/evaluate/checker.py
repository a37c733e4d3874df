"""Whether the demo's pictures show what was asked for, attribute by attribute.

As GenEval (arXiv:2310.11513) does with detectors for real pictures, the demo's rule-based checker
looks for objects and compares each with the prompt. A picture counts 100 or 0, so means and their
differences are percent. An attribute that a prompt does not state has no value.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from sdcompress.demo.checker import check
from sdcompress.demo.grammar import Scene, parse
from sdcompress.evaluate.metrics import Metric

Value = float | None

_ATTRIBUTES = {
    "checker": ("all", "everything the prompt states"),
    "checker_colour": ("colour", "the colour of every object"),
    "checker_shape": ("shape", "the shape of every object"),
    "checker_size": ("size", "the size of every object, where the prompt states one"),
    "checker_relation": ("relation", "where the first object lies as seen from the second"),
}

METRICS = tuple(
    Metric(
        name=name,
        title=f"checker, {title}",
        kind="picture",
        better="higher",
        unit="%",
        definition=f"share of pictures that show {what}, judged by the demo's rule-based checker",
        low=0.0,
        high=100.0,
        made_by="sdcompress.demo.checker",
        digits=1,
    )
    for name, (title, what) in _ATTRIBUTES.items()
)


def speaks_of_scenes(prompts: Sequence[str]) -> bool:
    """Tells whether all prompts are of the demo's grammar, which the checker can judge."""
    try:
        for prompt in prompts:
            parse(prompt)
    except ValueError:
        return False
    return True


def check_pictures(files: Sequence[Path], prompts: Sequence[str]) -> dict[str, tuple[Value, ...]]:
    """The values of all `METRICS` for pictures and their prompts, 100, 0 or None each."""
    rows = [_check(file, parse(prompt)) for file, prompt in zip(files, prompts, strict=True)]
    return {name: tuple(row[name] for row in rows) for name in _ATTRIBUTES}


def _check(file: Path, scene: Scene) -> Mapping[str, Value]:
    with Image.open(file) as image:
        found = check(image.convert("RGB"), scene)
    sized = any(thing.size for thing in scene.objects)
    return {
        "checker": 100.0 * found.ok,
        "checker_colour": 100.0 * found.colour,
        "checker_shape": 100.0 * found.shape,
        "checker_size": 100.0 * found.size if sized else None,
        "checker_relation": 100.0 * found.relation if scene.relation else None,
    }
