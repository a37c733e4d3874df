"""Commands that make and judge: quantize, calibrate, convert, evaluate, compare, recipes."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sdcompress.cli.options import BUNDLE, FOLDER, ignore_preflight, recipe_arguments

if TYPE_CHECKING:
    from sdcompress.recipe import Recipe
    from sdcompress.workflow import Run


@click.command()
@recipe_arguments
@ignore_preflight
def quantize(recipe: "Recipe", **options: Any) -> None:
    """Convert, calibrate, compress, evaluate, report and bundle, as RECIPE says.

    RECIPE is a YAML file or the name of a shipped one (see `sdcompress recipes`). Finished stages
    are kept in .sdcompress beside the output folder and reused while their inputs are the same; a
    killed run goes on where it was, inside long stages too. What the run of a large model will
    take is estimated first, and exit code 2 refuses one that does not fit. Exit code 3 means that
    the quality gate refused the result; the report says why.

    \b
    Examples:
      sdcompress quantize recipes/unet_int8.yaml
      sdcompress quantize sd21_base_int8 --model ~/models/stable-diffusion-2-1-base
      sdcompress quantize unet_int8 --set compress.unet.smooth_quant_alpha=0.8 --output build/a080
    """
    from sdcompress.progress import TerminalProgress
    from sdcompress.workflow import quantize as run_quantize

    _summarize(run_quantize(recipe, progress=TerminalProgress(), **options))


@click.command()
@recipe_arguments
@ignore_preflight
def calibrate(recipe: "Recipe", **options: Any) -> None:
    """Record calibration inputs only, for later runs of the same recipe to reuse.

    Prints the folder of the Arrow datasets and their provenance. It lies in .sdcompress beside
    the output folder, where `quantize` with the same --output finds it.
    """
    from sdcompress.progress import TerminalProgress
    from sdcompress.workflow import calibrate as run_calibrate

    click.echo(run_calibrate(recipe, progress=TerminalProgress(), **options))


@click.command()
@click.argument("model")
@click.argument("output", type=FOLDER)
@click.option("--revision", help="Hub revision: a branch, tag or commit.")
@click.option("--variant", help="Weight file variant, for example fp16.")
@click.option("--width", type=int, help="Fix the picture width in pixels.")
@click.option("--height", type=int, help="Fix the picture height in pixels.")
@click.option("--batch", type=int, help="Fix the UNet batch: 2 with guidance, 1 without.")
@click.option(
    "--weights",
    type=click.Choice(["stored", "fp32"]),
    default="stored",
    show_default=True,
    help="Keep the checkpoint's type, or write 32-bit weights.",
)
@click.option("--config", help="Settings for a single-file MODEL: a diffusers folder or hub id.")
@click.option("--lora", "loras", type=(str, float), multiple=True, metavar="FILE SCALE",
              help="Fuse a LoRA file, scaled; may be repeated.")  # fmt: skip
def convert(model: str, output: Path, **options: Any) -> None:
    """Convert MODEL to OpenVINO IR in the new folder OUTPUT; weights are not rounded.

    MODEL is `demo`, a diffusers folder, a .safetensors file in the original layout or a hub id.
    openvino-genai and optimum-intel load the result as well.
    """
    from sdcompress.progress import TerminalProgress
    from sdcompress.workflow import convert as run_convert

    click.echo(run_convert(model, output, progress=TerminalProgress(), **options))


@click.command()
@click.argument("bundle", type=BUNDLE)
@click.option("--output", type=FOLDER, help="Where to write.  [default: BUNDLE-evaluation]")
@click.option("--set", "overrides", multiple=True, metavar="KEY.PATH=VALUE",
              help="Change one value of the bundle's recipe; may be repeated.")  # fmt: skip
@click.option("--fresh", is_flag=True, help="Measure everything anew, reuse nothing.")
@ignore_preflight
def evaluate(bundle: Path, **options: Any) -> None:
    """Measure BUNDLE against its uncompressed baseline and judge it by its recipe's budgets.

    Figures of an earlier evaluation are reused while nothing they depend on has changed.
    """
    from sdcompress.progress import TerminalProgress
    from sdcompress.workflow import evaluate as run_evaluate

    _summarize(run_evaluate(bundle, progress=TerminalProgress(), **options))


@click.command()
@click.argument("folders", type=BUNDLE, nargs=-1, required=True, metavar="DIR...")
def compare(folders: tuple[Path, ...]) -> None:
    """Put the reports of several result folders side by side, the best values marked."""
    from sdcompress.report.comparison import compare as run_compare
    from sdcompress.report.comparison import render

    render(run_compare(folders))


@click.command()
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
