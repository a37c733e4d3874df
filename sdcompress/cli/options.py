"""Arguments and options that several commands have."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sdcompress.sizes import parse_size

if TYPE_CHECKING:
    from sdcompress.recipe import Recipe

FOLDER = click.Path(file_okay=False, path_type=Path)
BUNDLE = click.Path(exists=True, file_okay=False, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
NEW_FILE = click.Path(dir_okay=False, path_type=Path)
PRECISION = click.Choice(["f32", "bf16", "f16"])
SCHEDULERS = ("ddim", "ddpm", "pndm", "lms", "euler", "euler_ancestral", "heun", "dpmsolver++",
               "sde-dpmsolver++", "dpmsolver++-singlestep", "unipc", "lcm")  # fmt: skip


class MemorySize(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4
    """A number of bytes: 2GB, 1500 MB, 1.5GiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_size(str(value))
        except ValueError as fault:
            self.fail(str(fault), param, ctx)


def recipe_arguments(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command RECIPE and its options, and passes the loaded recipe on."""

    @click.argument("recipe", metavar="RECIPE")
    @click.option("--model", help="Demo, diffusers folder or hub id, instead of the recipe's.")
    @click.option("--set", "overrides", multiple=True, metavar="KEY.PATH=VALUE",
                  help="Change one recipe value; may be repeated.")  # fmt: skip
    @click.option("--device", help="OpenVINO device, instead of the recipe's.  [default: CPU]")
    @click.option(
        "--fresh",
        is_flag=True,
        help="Build and measure all stages anew. A search's last evaluation is not repeated.",
    )
    @click.option("--output", type=FOLDER,
                  help="Where to write.  [default: a folder in build/ named after the recipe, of a "
                  "search with -search behind]")  # fmt: skip
    @functools.wraps(command)
    def loading(
        recipe: str, model: str | None, overrides: tuple[str, ...], device: str | None, **rest: Any
    ) -> None:
        given = {"model": model, "device": device}
        extra = [f"{key}={json.dumps(value)}" for key, value in given.items() if value]
        command(load_named(recipe, (*overrides, *extra)), **rest)

    return loading


ignore_preflight = click.option(
    "--ignore-preflight", is_flag=True, help="Start although memory or disk seem not to suffice."
)


def engine_options(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options that say where and how a bundle is executed."""
    options = (
        click.option("--device", default="CPU", show_default=True,
                     help="OpenVINO device: CPU, GPU, NPU, AUTO ..."),
        click.option("--precision", type=PRECISION,
                     help="Execution precision.  [default: the device's choice]"),
        click.option("--threads", type=click.IntRange(1), help="Processor threads to use."),
        click.option("--cache-dir", type=FOLDER,
                     help="Keep compiled models here: later starts are quicker."),
        click.option("--cache-size", type=MemorySize(), default="4GB", show_default=True,
                     help="What they may take there; those not used for longest go."),
        click.option("--verify", type=click.Choice(["once", "always", "never"]), default="once",
                     show_default=True,
                     help="When to compare hashes with the manifest; encoded prompts are not kept "
                          "under hashes that never are."),
        click.option("--public-key", type=FILE,
                     help="Refuse a bundle not signed by this key; hashes are always compared."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def load_named(recipe: str, overrides: tuple[str, ...]) -> "Recipe":
    """Loads a recipe file, or the shipped recipe of that name."""
    from sdcompress.catalogue import recipe_file
    from sdcompress.recipe import load_recipe

    return load_recipe(recipe_file(recipe), overrides)
