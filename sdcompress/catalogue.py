"""The shipped recipes: lists them and explains one."""

import difflib
from collections.abc import Iterator
from pathlib import Path

import yaml

from sdcompress.errors import RecipeError
from sdcompress.methods import COMPONENTS, METHODS
from sdcompress.recipe import Recipe, load_recipe
from sdcompress.shipped import shipped_folder


def shipped_recipes() -> dict[str, Path]:
    """Returns the shipped recipe files by name."""
    return {path.stem: path for path in sorted(shipped_folder("recipes").rglob("*.yaml"))}


def list_shipped() -> Iterator[str]:
    """Yields one line for each shipped recipe."""
    for name, file in shipped_recipes().items():
        recipe = load_recipe(file)
        yield f"{name:<16} {recipe.model:<40} {recipe.description}"
    yield "\n`sdcompress recipes NAME` explains one; copy the file to change it."


def explain(name: str) -> Iterator[str]:
    """Yields a recipe's choices in words and its full text with the defaults filled in.

    `name` is a shipped recipe's or a file's. Raises RecipeError when there is neither.
    """
    file = recipe_file(name)
    recipe = load_recipe(file)
    yield f"{recipe.name}: {recipe.description}"
    yield f"file: {file}\n"
    for component in COMPONENTS:
        method = recipe.compress.method_of(component).method
        yield f"{component:<13} {method:<13} {_first_paragraph(method)}"
    yield "\nThe gate:"
    for budget, limit in recipe.budgets:
        if limit is not None:
            yield f"  {budget:<20} {limit:g}"
    yield f"\n{_as_yaml(recipe)}"


def recipe_file(name: str) -> Path:
    """The shipped recipe of this name, or a file. Raises RecipeError for a name of neither."""
    shipped = shipped_recipes()
    is_path = len(Path(name).parts) > 1 or Path(name).suffix or Path(name).exists()
    if name not in shipped and not is_path:
        nearest = difflib.get_close_matches(name, shipped, n=1)
        hint = f"; did you mean '{nearest[0]}'?" if nearest else ""
        raise RecipeError(f"no recipe '{name}'; shipped are: {', '.join(shipped)}{hint}")
    return shipped.get(name, Path(name))


def _first_paragraph(method: str) -> str:
    text = METHODS[method].__doc__ or ""
    return " ".join(text.strip().split("\n\n")[0].split())


def _as_yaml(recipe: Recipe) -> str:
    return yaml.safe_dump(recipe.as_dict(), sort_keys=False, width=100).rstrip()
