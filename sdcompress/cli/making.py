"""Commands that make and judge: quantize, calibrate, convert, evaluate, compare, recipes."""

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sdcompress.cli.options import (
    BUNDLE,
    FOLDER,
    NEW_FILE,
    SCHEDULERS,
    ignore_preflight,
    load_named,
    recipe_arguments,
)

if TYPE_CHECKING:
    from sdcompress.recipe import Recipe
    from sdcompress.verdict import Run


@click.command()
@recipe_arguments
@ignore_preflight
def quantize(recipe: "Recipe", **options: Any) -> None:
    """Convert, calibrate, compress, evaluate, report and bundle, as RECIPE says.

    RECIPE is a YAML file or the name of a shipped one (see `sdcompress recipes`). Finished stages
    are kept in .sdcompress beside the output folder and reused while their inputs are the same; a
    killed run goes on where it was, inside long stages too. What the run of a large model will
    take is estimated first, and exit code 2 refuses one that does not fit. Exit code 3 means that
    the quality gate refused the result, 4 that it takes more pictures to tell; the report says why.

    \b
    Examples:
      sdcompress quantize recipes/unet_int8.yaml
      sdcompress quantize sd21_base_int8 --model ~/models/stable-diffusion-2-1-base
      sdcompress quantize unet_int8 --set compress.unet.smooth_quant_alpha=0.8 --output build/a080
    """
    from sdcompress.progress import TerminalProgress
    from sdcompress.workflow import quantize as run_quantize

    summarize(run_quantize(recipe, progress=TerminalProgress(), **options))


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
@click.option("--tiny-decoder", metavar="demo|FOLDER|ID",
              help="Convert this AutoencoderTiny as well, for previews.")  # fmt: skip
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
@click.option(
    "--against",
    type=BUNDLE,
    metavar="FOLDER",
    help="Compare with this pipeline, instead of the model BUNDLE was made from.",
)
@click.option("--recipe", help="Evaluate as this recipe says.  [default: the bundle's own]")
@click.option(
    "--prompts",
    metavar="SET|FILE",
    help="Draw these: a shipped set, a .jsonl, .csv or .txt file, or a dataset.",
)
@click.option("--samples", type=click.IntRange(2), help="How many pictures of each side.")
@click.option("--output", type=FOLDER, help="Where to write.  [default: BUNDLE-evaluation]")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY.PATH=VALUE",
    help="Change one value of the recipe; may be repeated.",
)
@click.option(
    "--fresh/--resume",
    default=False,
    help="Measure everything anew, or go on where an earlier run ended.  [default: resume]",
)
@ignore_preflight  # fmt: skip
def evaluate(
    bundle: Path,
    recipe: str | None,
    prompts: str | None,
    samples: int | None,
    overrides: tuple[str, ...],
    **options: Any,
) -> None:
    """Measure BUNDLE against its uncompressed baseline and judge it by its recipe's budgets.

    With --against, both may be any pipeline in OpenVINO IR, for example what optimum-cli exports.
    Pictures and figures of an earlier evaluation are reused while nothing they depend on has
    changed, so a second candidate does not draw the baseline again. Exit code 3 means that a budget
    is broken, 4 that it takes more samples to tell.

    \b
    Examples:
      sdcompress evaluate build/unet_int8 --samples 128
      sdcompress evaluate exported-int8 --against exported-fp16 --prompts my_prompts.csv
    """
    from sdcompress.assessment import evaluate as run_evaluate
    from sdcompress.progress import TerminalProgress

    extra = _evaluated_on(prompts, samples)
    chosen = load_named(recipe, ()) if recipe else None
    progress = TerminalProgress()
    summarize(
        run_evaluate(
            bundle, recipe=chosen, overrides=(*overrides, *extra), progress=progress, **options
        )
    )


@click.command()
@click.argument("bundle", type=BUNDLE)
@click.option("--cache-interval", "cache_intervals", type=click.IntRange(1), multiple=True,
              help="Ask the whole UNet at every N-th call; may be repeated.  "
              "[default: 1, 2, 3, 5]")  # fmt: skip
@click.option("--cache-depth", "cache_depths", type=click.IntRange(1), multiple=True,
              help="With it: skip connections of the layers that are still computed; may be "
              "repeated.  [default: 1]")  # fmt: skip
@click.option("--attention-stride", "attention_strides", type=click.IntRange(1, 8), multiple=True,
              help="Self-attention reads every N-th row and column; may be repeated.  "
              "[default: 1, 2]")  # fmt: skip
@click.option("--guidance-begin", "guidance_begins", multiple=True,
              type=click.FloatRange(0, 1, max_open=True), help="Share of the calls before which "
              "there is no guidance; may be repeated.  [default: 0]")  # fmt: skip
@click.option("--guidance-end", "guidance_ends", multiple=True,
              type=click.FloatRange(0, 1, min_open=True), help="Share of the calls after which "
              "guidance ends; may be repeated.  [default: 1, 0.6]")  # fmt: skip
@click.option("--steps", type=click.IntRange(2, 1000), multiple=True,
              help="Denoising steps; may be repeated.  [default: the baseline's]")  # fmt: skip
@click.option("--scheduler", "schedulers", type=click.Choice(SCHEDULERS), multiple=True,
              metavar="NAME", help="May be repeated.  [default: the baseline's]")  # fmt: skip
@click.option("--decoder", "decoders", type=click.Choice(["vae", "tiny"]), multiple=True,
              help="May be repeated.  [default: vae]")  # fmt: skip
@click.option("--prompts", metavar="SET|FILE", help="Draw these instead of the bundle's.")
@click.option("--samples", type=click.IntRange(2), help="How many pictures for each combination.")
@click.option("--turns", type=click.IntRange(1), default=1, show_default=True,
              help="How often each is timed; the quickest counts.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option("--fresh/--resume", default=False, help="Measure everything anew, or reuse.  "
              "[default: resume]")  # fmt: skip
@ignore_preflight
def sweep(
    bundle: Path,
    prompts: str | None,
    samples: int | None,
    turns: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure what shortcuts in drawing with BUNDLE gain and cost, and show the Pareto front.

    Every combination draws the bundle's evaluation prompts, as its baseline is drawn but for the
    shortcuts, and is compared with the float32 baseline and timed in a process of its own. What is
    worth it goes into the `runtime` section of a recipe, which measures it again and has the bundle
    draw so. How long a large model will take is estimated first.

    \b
    Examples:
      sdcompress sweep build/unet_int8
      sdcompress sweep build/unet_int8 --cache-interval 2 --cache-interval 4 --guidance-end 1
    """
    from sdcompress.assessment import sweep as run_sweep
    from sdcompress.progress import TerminalProgress
    from sdcompress.sweep import Grid, recommend, table

    values = {field.name: options.pop(field.name) for field in fields(Grid)}
    grid = Grid(**{name: given for name, given in values.items() if given})
    overrides = _evaluated_on(prompts, samples)
    found, drop = run_sweep(
        bundle, grid, turns=turns, overrides=overrides, progress=TerminalProgress(), **options
    )
    if as_json:
        best = recommend(found, drop)
        told = {
            "clip_score_drop": drop,
            "recommended": best and best.shortcuts,
            "combinations": [asdict(one) for one in found],
        }
        click.echo(json.dumps(told, indent=2))
    else:
        for line in table(found, drop):
            click.echo(line)


@click.command()
@click.argument("folders", type=BUNDLE, nargs=-1, required=True, metavar="DIR...")
@click.option("--html", type=NEW_FILE, metavar="FILE", help="Write a page with the Pareto fronts.")
@click.option("--csv", "form", flag_value="csv", help="Print the table as CSV.")
@click.option("--json", "form", flag_value="json", help="Print everything as JSON.")
def compare(folders: tuple[Path, ...], html: Path | None, form: str | None) -> None:
    """Put the reports of several result folders side by side, the best values marked.

    Differences between the compressed models are paired where prompts and seeds match. What cannot
    be compared (other prompts, settings, scorer, machine) is marked, with the reason.
    """
    from sdcompress.report import comparison_text as text
    from sdcompress.report.comparison import compare as compare_reports
    from sdcompress.report.comparison_page import render_comparison

    found = compare_reports(folders)
    if html:
        html.write_text(render_comparison(found), encoding="utf-8")
    if form == "csv":
        click.echo(text.as_csv(found), nl=False)
        for note in found.notes:
            click.echo(note, err=True)
    elif form == "json":
        click.echo(text.as_json(found), nl=False)
    else:
        text.render(found)


@click.command()
@click.argument("name", required=False)
def recipes(name: str | None) -> None:
    """List the shipped recipes, or explain the one called NAME, its defaults filled in."""
    from sdcompress.catalogue import explain, list_shipped

    for line in explain(name) if name else list_shipped():
        click.echo(line)


def _evaluated_on(prompts: str | None, samples: int | None) -> tuple[str, ...]:
    """Overrides of a recipe for other prompts."""
    given = {"evaluate.prompt_set": prompts, "evaluate.prompts": samples}
    return tuple(f"{key}={json.dumps(value)}" for key, value in given.items() if value is not None)


def summarize(run: "Run") -> None:
    """Prints what a run measured and where it left what it made."""
    from rich.console import Console

    from sdcompress.report.summary import print_summary

    print_summary(Console(), run.evaluation, run.budgets)
    click.echo(f"report: {run.report / 'report.html'}")
    if run.bundle:
        click.echo(f"bundle: {run.bundle}")
