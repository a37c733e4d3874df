"""The whole search in a reduced form: what it finds is a recipe as any other."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import quick_recipe

from sdcompress.methods import Mixed
from sdcompress.recipe import Recipe, load_recipe
from sdcompress.searching import Found, search

REDUCED = (
    "search={objective: size, timesteps: 1, confirmed: 1, trajectory_steps: 2, candidates: 1, "
    "prompts: 2, size_mb_max: 6.5, variants: {w8a8: {method: int8}, "
    "weights4: {method: int4_weights}}}",
    "name=found_small",
)


def reduced(*overrides: str) -> Recipe:
    return quick_recipe("unet_int8", *REDUCED, *overrides)


@pytest.fixture(scope="module")
def found(bundle: Path, build_folder: Path) -> Found:
    del bundle  # converted and calibrated on the way
    return search(reduced(), build_folder / "found_small-search")


def test_the_recipe_makes_what_was_found(found: Found, build_folder: Path) -> None:
    from sdcompress.workflow import quantize

    recipe = load_recipe(found.recipe)
    assert isinstance(recipe.compress.unet, Mixed)
    assert recipe.compress.unet == found.chosen.method
    again = quantize(recipe, build_folder / "found_again")
    hashes = [
        json.loads((run / "manifest.json").read_text())["files"]["unet/openvino_model.bin"]
        for run in (found.run.output, again.output)
    ]
    assert hashes[0] == hashes[1]


def test_it_keeps_to_the_limit_of_its_search(found: Found) -> None:
    assert found.chosen.stored_bytes < 6.5e6 * 1.1  # what is in no group is not counted
    assert found.run.passed


def test_it_leaves_a_page_and_all_figures(found: Found) -> None:
    assert sorted(one.name for one in found.folder.iterdir()) == [
        "recipe.search.yaml",
        "search.html",
        "search.json",
    ]
    told = json.loads((found.folder / "search.json").read_text())
    assert {one["name"] for one in told["candidates"]} == {"as the recipe says", "choice 1"}
    assert set(told["sensitivity"]) == {"w8a8", "weights4"}
    page = (found.folder / "search.html").read_text()
    assert page.count("<svg") == 4  # two fronts, two heat maps


def test_measured_anew_it_finds_the_same(found: Found, build_folder: Path) -> None:
    store = build_folder / ".sdcompress"
    for kept in (*store.glob("sensitivity-*"), *store.glob("cost-*")):
        shutil.rmtree(kept)
    again = search(reduced(), build_folder / "found_small-search")
    assert again.chosen.choice == found.chosen.choice
