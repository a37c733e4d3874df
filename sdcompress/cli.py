"""The command line: parse, call one function, print. No decisions are made here."""

import functools
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sdcompress import __version__
from sdcompress.errors import SdcompressError

if TYPE_CHECKING:
    from sdcompress.recipe import Recipe
    from sdcompress.workflow import Run

_FOLDER = click.Path(file_okay=False, path_type=Path)
_BUNDLE = click.Path(exists=True, file_okay=False, path_type=Path)


class _Reporting(click.Group):
    """Prints the project's faults as messages; the exit code is 2, or 3 from the quality gate."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SdcompressError as fault:
            click.secho("error: ", fg="red", bold=True, nl=False, err=True)
            click.echo(str(fault), err=True)
            ctx.exit(fault.exit_code)
        except ModuleNotFoundError as fault:
            click.echo(
                f"error: '{ctx.invoked_subcommand}' needs the package {fault.name}, which the base "
                'install leaves out. Install the toolkit: pip install "sdcompress[toolkit]"',
                err=True,
            )
            ctx.exit(2)
        except OSError as fault:
            where = f"{fault.filename}: " if fault.filename else ""
            click.echo(f"error: {where}{fault.strerror or fault}", err=True)
            ctx.exit(2)


def _recipe_arguments(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command RECIPE and its options, and passes the loaded recipe on."""

    @click.argument("recipe", metavar="RECIPE")
    @click.option("--model", help="Demo, diffusers folder or hub id, instead of the recipe's.")
    @click.option("--set", "overrides", multiple=True, metavar="KEY.PATH=VALUE",
                  help="Change one recipe value; may be repeated.")  # fmt: skip
    @click.option("--device", help="OpenVINO device, instead of the recipe's.  [default: CPU]")
    @click.option("--fresh", is_flag=True, help="Build every stage anew, reuse nothing.")
    @click.option("--output", type=_FOLDER, help="Where to write.  [default: build/RECIPE-NAME]")
    @functools.wraps(command)
    def loading(
        recipe: str, model: str | None, overrides: tuple[str, ...], device: str | None, **rest: Any
    ) -> None:
        given = {"model": model, "device": device}
        extra = [f"{key}={json.dumps(value)}" for key, value in given.items() if value]
        command(_load(recipe, (*overrides, *extra)), **rest)

    return loading


def _load(recipe: str, overrides: tuple[str, ...]) -> "Recipe":
    from sdcompress.catalogue import shipped_recipes
    from sdcompress.recipe import load_recipe

    return load_recipe(shipped_recipes().get(recipe, Path(recipe)), overrides)


@click.group(cls=_Reporting, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sdcompress")
@click.option("-v", "--verbose", is_flag=True, help="Show what the libraries have to say.")
def main(*, verbose: bool) -> None:
    """Compress Stable Diffusion for Intel hardware, prove the pictures held, ship the result.

    \b
    Start here; it needs no download and runs in minutes:
      sdcompress quantize unet_int8
      sdcompress generate build/unet_int8 "a small red circle above a large blue square"
    \b
    Then with the real model:
      sdcompress quantize sd21_base_int8
    """
    logging.basicConfig(level=logging.DEBUG if verbose else logging.WARNING)
    logging.getLogger("sdcompress").setLevel(logging.DEBUG if verbose else logging.WARNING)


@main.command()
@_recipe_arguments
def quantize(recipe: "Recipe", *, output: Path | None, fresh: bool) -> None:
    """Convert, calibrate, compress, evaluate, report and bundle, as RECIPE says.

    RECIPE is a YAML file or the name of a shipped one (see `sdcompress recipes`). Finished stages
    are kept in .sdcompress beside the output folder and reused while their inputs are the same.
    Exit code 3 means that the quality gate refused the result; the report says why.

    \b
    Examples:
      sdcompress quantize recipes/unet_int8.yaml
      sdcompress quantize sd21_base_int8 --model ~/models/stable-diffusion-2-1-base
      sdcompress quantize unet_int8 --set compress.unet.smooth_quant_alpha=0.8 --output build/a080
    """
    from sdcompress.progress import TerminalProgress
    from sdcompress.workflow import quantize as run_quantize

    _summarize(run_quantize(recipe, output, fresh=fresh, progress=TerminalProgress()))


@main.command()
@_recipe_arguments
def calibrate(recipe: "Recipe", *, output: Path | None, fresh: bool) -> None:
    """Record calibration inputs only, for later runs of the same recipe to reuse.

    Prints the folder of the Arrow datasets and their provenance. It lies in .sdcompress beside
    the output folder, where `quantize` with the same --output finds it.
    """
    from sdcompress.progress import TerminalProgress
    from sdcompress.workflow import calibrate as run_calibrate

    click.echo(run_calibrate(recipe, output, fresh=fresh, progress=TerminalProgress()))


@main.command()
@click.argument("model")
@click.argument("output", type=_FOLDER)
@click.option("--revision", help="Hub revision: a branch, tag or commit.")
@click.option("--variant", help="Weight file variant, for example fp16.")
@click.option("--width", type=int, help="Fix the picture width in pixels.")
@click.option("--height", type=int, help="Fix the picture height in pixels.")
@click.option("--batch", type=int, help="Fix the UNet batch: 2 with guidance, 1 without.")
def convert(model: str, output: Path, **options: Any) -> None:
    """Convert MODEL to FP32 OpenVINO IR in the new folder OUTPUT.

    MODEL is `demo`, a diffusers folder or a hub id. openvino-genai and optimum-intel load the
    result as well.
    """
    from sdcompress.progress import TerminalProgress
    from sdcompress.workflow import convert as run_convert

    click.echo(run_convert(model, output, progress=TerminalProgress(), **options))


@main.command()
@click.argument("bundle", type=_BUNDLE)
@click.option("--output", type=_FOLDER, help="Where to write.  [default: BUNDLE-evaluation]")
@click.option("--set", "overrides", multiple=True, metavar="KEY.PATH=VALUE",
              help="Change one value of the bundle's recipe; may be repeated.")  # fmt: skip
@click.option("--fresh", is_flag=True, help="Measure everything anew, reuse nothing.")
def evaluate(bundle: Path, output: Path | None, overrides: tuple[str, ...], *, fresh: bool) -> None:
    """Measure BUNDLE against its FP32 baseline and judge it by its recipe's budgets.

    Figures of an earlier evaluation are reused while nothing they depend on has changed.
    """
    from sdcompress.progress import TerminalProgress
    from sdcompress.workflow import evaluate as run_evaluate

    progress = TerminalProgress()
    _summarize(run_evaluate(bundle, output, overrides=overrides, fresh=fresh, progress=progress))


@main.command()
@click.argument("folders", type=_BUNDLE, nargs=-1, required=True, metavar="DIR...")
def compare(folders: tuple[Path, ...]) -> None:
    """Put the reports of several result folders side by side, the best values marked."""
    from sdcompress.report.comparison import compare as run_compare
    from sdcompress.report.comparison import render

    render(run_compare(folders))


@main.command()
@click.argument("bundle", type=_BUNDLE)
@click.argument("prompt")
@click.option("--negative-prompt", default="", help="What the picture should not show.")
@click.option("--steps", type=click.IntRange(1, 1000), help="Denoising steps.")
@click.option("--guidance-scale", type=click.FloatRange(1.0), help="1.0 switches guidance off.")
@click.option("--seed", type=click.IntRange(0), default=42, show_default=True)
@click.option("--count", type=click.IntRange(1), default=1, show_default=True,
              help="Pictures, with seeds SEED, SEED + 1, ...")  # fmt: skip
@click.option("--size", metavar="WxH", help="In pixels, for example 512x512.")
@click.option("--scheduler", help="ddim, pndm, euler or dpmsolver++.")
@click.option("--device", default="CPU", show_default=True, help="OpenVINO device.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path),
              default=Path("out.png"), show_default=True)  # fmt: skip
def generate(bundle: Path, prompt: str, output: Path, **options: Any) -> None:
    """Draw PROMPT with BUNDLE, or with any pipeline folder of OpenVINO IR.

    Settings not given are those the bundle was evaluated with. The PNG is 24-bit and carries its
    settings as text; with --count, files are numbered.
    """
    from sdcompress.drawing import draw

    for file in draw(bundle, prompt, output, **options):
        click.echo(file)


@main.command()
@click.argument("folder", type=click.Path(exists=True, path_type=Path), metavar="BUNDLE|IR")
@click.option("--layers", is_flag=True, help="List every layer, not only the counts.")
def inspect(folder: Path, *, layers: bool) -> None:
    """Show layers by precision and sizes, of a bundle or of one IR."""
    from sdcompress.inspection import describe

    for line in describe(folder, every_layer=layers):
        click.echo(line)


@main.command()
@click.argument("folder", type=_BUNDLE, metavar="DIR")
def verify(folder: Path) -> None:
    """Check every file of a bundle against its manifest."""
    from sdcompress.runtime import BundleError, read_manifest
    from sdcompress.runtime import verify as run_verify

    problems = run_verify(folder)
    if problems:
        raise BundleError(f"{folder} is not intact:\n" + "\n".join(f"  {p}" for p in problems))
    click.echo(f"{folder}: {len(read_manifest(folder).files)} files, all as the manifest says")


@main.command()
@click.argument("name", required=False)
def recipes(name: str | None) -> None:
    """List the shipped recipes, or explain the one called NAME, its defaults filled in."""
    from sdcompress.catalogue import explain, list_shipped

    for line in explain(name) if name else list_shipped():
        click.echo(line)


def _summarize(run: "Run") -> None:
    from rich.console import Console

    from sdcompress.report.summary import print_summary

    print_summary(Console(), run.evaluation, run.budgets)
    click.echo(f"bundle: {run.bundle}" if run.bundle else f"report: {run.report}")


if __name__ == "__main__":
    sys.exit(main())
