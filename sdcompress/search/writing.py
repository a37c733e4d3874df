"""Writes a choice as a recipe, in patterns that a reader can check."""

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from sdcompress.methods import PLAIN, Mixed, Plain
from sdcompress.recipe import Recipe
from sdcompress.search.groups import KINDS, Group, pattern_of
from sdcompress.search.records import Candidate, Hunt
from sdcompress.search.solver import Choice

RECIPE_SUFFIX = ".search.yaml"
_LONGEST = 100  # letters of a pattern, where several can say the same


def recipe_file(recipe: Recipe) -> str:
    """What the file of a recipe found from this one is called."""
    return f"{recipe.name}{RECIPE_SUFFIX}"


def as_method(
    choice: Choice, groups: Sequence[Group], variants: Mapping[str, Plain]
) -> Mixed | Plain:
    """The method that gives each group its variant, which is not 16 bits throughout.

    What most layers are goes without patterns; a kind that is all alike needs one. Groups that are
    not in the choice have nothing to choose.
    """
    counted: Counter[str] = Counter()
    for group in groups:
        if group.name in choice:
            counted[choice[group.name]] += len(group.layers)
    otherwise = max(counted, key=lambda name: (counted[name], name))
    layers: dict[str, str] = {}
    for kind in dict.fromkeys(group.kind for group in groups):
        alike = [group for group in groups if group.kind == kind and group.name in choice]
        chosen = [choice[group.name] for group in alike]
        for name in dict.fromkeys(chosen):
            places = [group.place for group in alike if choice[group.name] == name]
            everywhere = len(places) == len(alike) and kind in KINDS
            for some in [[""]] if everywhere else _in_short(kind, places):
                layers[pattern_of(kind, some)] = name
    layers = {pattern: name for pattern, name in layers.items() if name != otherwise}
    if not layers:
        return variants[otherwise]
    used = {*layers.values(), otherwise} - {PLAIN}
    return Mixed(
        method="mixed",
        variants={name: one for name, one in variants.items() if name in used},
        layers=layers,
        otherwise=otherwise,
    )


def _in_short(kind: str, places: Sequence[str]) -> list[list[str]]:
    """The places, so many together as a pattern of a readable length can name."""
    parts: list[list[str]] = []
    for place in places:
        if parts and len(pattern_of(kind, [*parts[-1], place])) <= _LONGEST:
            parts[-1].append(place)
        else:
            parts.append([place])
    return parts


def _found_name(recipe: Recipe) -> str:
    """What a recipe that is found from this one is called; names have 64 letters at most."""
    return f"{recipe.name[:57]}_search"


def found_recipe(recipe: Recipe, candidate: Candidate) -> Recipe:
    """The recipe that builds a candidate."""
    return type(recipe).model_validate(_recipe_data(recipe, candidate))


def _recipe_data(recipe: Recipe, candidate: Candidate) -> dict[str, Any]:
    data = recipe.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    data["name"] = _found_name(recipe)
    data["description"] = "; ".join(
        filter(None, [recipe.description, "the UNet as `sdcompress search` found it"])
    )
    data.pop("search", None)  # it has been done
    data["compress"]["unet"] = candidate.method.model_dump(mode="json", exclude_defaults=True)
    return data


def write_recipe(recipe: Recipe, hunt: Hunt, candidate: Candidate, file: Path) -> None:
    """Writes the recipe that builds a candidate of a hunt."""
    size = f"{candidate.stored_bytes / 1e6:.1f} MB"
    head = (
        f"# Found by `sdcompress search` {version('sdcompress')} from the recipe {recipe.name}:\n"
        f"# {candidate.name}, for least {recipe.search.objective} on {hunt.processor}.\n"
        f"# A call of the UNet takes x {candidate.call_ratio:.2f} of what 16 bits take there, its\n"
        f"# file {size}.\n"
        "# Patterns are looked for in the names of layers; the first that is found decides.\n"
        "#\n"
        f"#     sdcompress quantize {file.name}\n"
    )
    body = yaml.safe_dump(_recipe_data(recipe, candidate), sort_keys=False, width=100)
    file.write_text(head + body, encoding="utf-8")
