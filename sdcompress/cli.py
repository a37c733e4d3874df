"""The command line: parse, call one function, print. No decisions are made here."""

import functools
import json
import logging
import sys
from collections.abc import Callable
from dataclasses import fields
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
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_NEW_FILE = click.Path(dir_okay=False, path_type=Path)
_SCHEDULERS = ("ddim", "ddpm", "pndm", "lms", "euler", "euler_ancestral", "heun", "dpmsolver++",
               "sde-dpmsolver++", "dpmsolver++-singlestep", "unipc", "lcm")  # fmt: skip


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


def _engine_options(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options that say where and how a bundle is executed."""
    options = (
        click.option("--device", default="CPU", show_default=True,
                     help="OpenVINO device: CPU, GPU, NPU, AUTO ..."),
        click.option("--precision", type=click.Choice(["f32", "bf16", "f16"]),
                     help="Execution precision.  [default: the device's choice]"),
        click.option("--threads", type=click.IntRange(1), help="Processor threads to use."),
        click.option("--cache-dir", type=_FOLDER, help="Keep compiled models here."),
        click.option("--verify", type=click.Choice(["once", "always", "never"]), default="once",
                     show_default=True, help="When to compare hashes with the manifest."),
        click.option("--public-key", type=_FILE,
                     help="Refuse a bundle not signed by this key; hashes are always compared."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


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
@click.option("--ignore-preflight", is_flag=True,
              help="Start although memory or disk seem not to suffice.")  # fmt: skip
def quantize(recipe: "Recipe", *, output: Path | None, fresh: bool, ignore_preflight: bool) -> None:
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

    run = run_quantize(
        recipe,
        output,
        fresh=fresh,
        ignore_preflight=ignore_preflight,
        progress=TerminalProgress(),
    )
    _summarize(run)


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


@main.command()
@click.argument("bundle", type=_BUNDLE)
@click.option("--output", type=_FOLDER, help="Where to write.  [default: BUNDLE-evaluation]")
@click.option("--set", "overrides", multiple=True, metavar="KEY.PATH=VALUE",
              help="Change one value of the bundle's recipe; may be repeated.")  # fmt: skip
@click.option("--fresh", is_flag=True, help="Measure everything anew, reuse nothing.")
def evaluate(bundle: Path, output: Path | None, overrides: tuple[str, ...], *, fresh: bool) -> None:
    """Measure BUNDLE against its uncompressed baseline and judge it by its recipe's budgets.

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
@click.argument("prompts", nargs=-1, required=True, metavar="PROMPT...")
@click.option("--negative-prompt", default="", help="What the pictures should not show.")
@click.option("--steps", type=click.IntRange(1, 1000), help="Denoising steps.")
@click.option("--guidance-scale", type=click.FloatRange(1.0), help="1.0 switches guidance off.")
@click.option("--seed", type=click.IntRange(0), default=42, show_default=True)
@click.option("--count", type=click.IntRange(1), default=1, show_default=True,
              help="Pictures a prompt, with seeds SEED, SEED + 1, ...")  # fmt: skip
@click.option("--size", metavar="WxH", help="In pixels, for example 512x512.")
@click.option("--image", type=_FILE, help="Begin with this picture instead of noise.")
@click.option("--mask", type=_FILE, help="Draw only what is white in this picture anew.")
@click.option("--strength", type=click.FloatRange(0, 1, min_open=True),
              help="How much of --image is drawn anew.  [default: 0.8, with a mask 1]")  # fmt: skip
@click.option("--scheduler", help=f"One of: {', '.join(_SCHEDULERS)}.")
@click.option("--eta", type=click.FloatRange(0, 1), help="DDIM's share of fresh noise.")
@click.option("--noise", type=click.Choice(["numpy", "torch"]),
              help="torch: random numbers as diffusers has them.  [default: numpy]")  # fmt: skip
@click.option("--prompt-weights", is_flag=True, default=None,
              help="(word:1.2) counts more, [word] less.")  # fmt: skip
@click.option("--long-prompts", is_flag=True, default=None,
              help="Encode prompts of more than 75 tokens in pieces, do not cut them.")  # fmt: skip
@click.option(
    "--preview", is_flag=True, help="Write OUTPUT.preview.png every 5 calls while it is drawn."
)
@_engine_options
@click.option("--mode", type=click.Choice(["latency", "throughput"]),
              help="Streams and batch that `sdcompress bench` found best here.")  # fmt: skip
@click.option("--streams", type=click.IntRange(1), help="Pictures drawn side by side.")
@click.option("--batch", type=click.IntRange(1), help="Pictures drawn in one batch.")
@click.option("--static/--dynamic", default=None, help="Compile for the size that is drawn.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path),
              default=Path("out.png"), show_default=True)  # fmt: skip
def generate(bundle: Path, prompts: tuple[str, ...], output: Path, **options: Any) -> None:
    """Draw each PROMPT with BUNDLE, or with any pipeline folder of OpenVINO IR.

    Settings not given are those the bundle was evaluated with. PNGs are 24-bit and carry their
    settings as text; several are numbered.

    \b
    Examples:
      sdcompress generate build/unet_int8 "a small red circle above a large blue square"
      sdcompress generate BUNDLE "a photo of an astronaut riding a horse on mars" \\
          --negative-prompt "low resolution, blurry" --seed 42 --count 20 --size 512x512
      sdcompress generate BUNDLE "a castle at night" --image castle.jpg --strength 0.6
      sdcompress generate BUNDLE "a golden crown" --image portrait.png --mask hair.png
    """
    from sdcompress.drawing import Begin, Engine, draw

    begin = Begin(**{field.name: options.pop(field.name) for field in fields(Begin)})
    engine = Engine(**{field.name: options.pop(field.name) for field in fields(Engine)})
    for file in draw(bundle, prompts, output, begin=begin, engine=engine, **options):
        click.echo(file)


@main.command()
@click.argument("bundle", type=_BUNDLE)
@click.option("--prompt", default="a photo of a green star", show_default=True)
@click.option("--steps", type=click.IntRange(2, 1000), help="[default: the bundle's]")
@click.option("--streams", type=click.IntRange(1), multiple=True,
              help="May be repeated.  [default: 1, 2, 4 ... processors]")  # fmt: skip
@click.option("--batch", "batches", type=click.IntRange(1), multiple=True,
              help="May be repeated.  [default: 1, 2, 4]")  # fmt: skip
@click.option("--images", type=click.IntRange(2), default=4, show_default=True,
              help="Pictures for each measurement.")  # fmt: skip
@click.option("--device", default="CPU", show_default=True, help="OpenVINO device.")
@click.option("--precision", type=click.Choice(["f32", "bf16", "f16"]), help="Execution precision.")
def bench(bundle: Path, device: str, precision: str | None, **options: Any) -> None:
    """Measure latency, throughput and memory of BUNDLE for a grid of streams and batches.

    Each choice runs in a process of its own. The best ones are marked and remembered on this
    machine: `sdcompress generate --mode latency` and `--mode throughput` use them.
    """
    from sdcompress.benching import bench as run_bench

    for line in run_bench(bundle, device=device, precision=precision, **options):
        click.echo(line)


@main.command()
@click.argument("folder", type=click.Path(exists=True, path_type=Path), metavar="BUNDLE|IR")
@click.option("--layers", is_flag=True, help="List every layer, not only the counts.")
@click.option("--executed", is_flag=True, help="Compile, and show what the device makes of it.")
@click.option("--device", default="CPU", show_default=True, help="Device for --executed.")
@click.option("--peer-scheduler", metavar="NAME", help="Write a scheduler that peers have, such as "
              "ddim or euler, into the bundle's scheduler files.")  # fmt: skip
def inspect(
    folder: Path, *, layers: bool, executed: bool, device: str, peer_scheduler: str | None
) -> None:
    """Show layers by precision and sizes, of a bundle or of one IR, and which peers can run it.

    With --executed, show instead which kernels a device runs, and in which precision it keeps the
    weights: some that are compressed in the file are unpacked when a device compiles the model.
    With --peer-scheduler the bundle's scheduler files and manifest change; this runtime goes on to
    draw with the scheduler that the bundle was evaluated with.
    """
    from sdcompress.inspection import describe
    from sdcompress.interchange import describe_peers, write_peer_scheduler

    if executed and peer_scheduler:
        raise click.UsageError("--executed and --peer-scheduler exclude each other")
    if executed:
        from sdcompress.executed import describe_executed

        for line in describe_executed(folder, device, every_layer=layers):
            click.echo(line)
        return
    if peer_scheduler:
        click.echo(write_peer_scheduler(folder, peer_scheduler))
    for line in (*describe(folder, every_layer=layers), *describe_peers(folder)):
        click.echo(line)


@main.command()
@click.argument("folder", type=_BUNDLE, metavar="DIR")
@click.option("--public-key", type=_FILE, help="Also demand a signature by this Ed25519 key (PEM).")
def verify(folder: Path, public_key: Path | None) -> None:
    """Check every file of a bundle against its manifest."""
    from sdcompress.runtime import read_manifest, require_signature
    from sdcompress.runtime.manifest import require_whole

    if public_key:
        require_signature(folder, public_key)
    require_whole(folder)
    signed = ", signed by the key given" if public_key else ""
    click.echo(
        f"{folder}: {len(read_manifest(folder).files)} files, all as the manifest says{signed}"
    )


@main.command()
@click.argument("folder", type=_BUNDLE, metavar="DIR")
@click.option("--key", type=_FILE, required=True, help="Ed25519 private key (PEM).")
def sign(folder: Path, key: Path) -> None:
    """Sign a bundle's manifest, and so every file in it, with an Ed25519 key.

    \b
    Make a pair of keys once, and keep the first one secret:
      openssl genpkey -algorithm ed25519 -out private.pem
      openssl pkey -in private.pem -pubout -out public.pem
    """
    from sdcompress.runtime import sign as run_sign

    click.echo(run_sign(folder, key))


@main.command()
@click.argument("folder", type=_BUNDLE, metavar="DIR")
@click.argument("archive", type=_NEW_FILE)
def pack(folder: Path, archive: Path) -> None:
    """Write a bundle as one file, the same bytes for the same bundle."""
    from sdcompress.runtime import pack as run_pack

    click.echo(run_pack(folder, archive))


@main.command()
@click.argument("archive", type=_FILE)
@click.argument("folder", type=_FOLDER)
def unpack(archive: Path, folder: Path) -> None:
    """Write the bundle in ARCHIVE to the new folder FOLDER, every file checked on the way."""
    from sdcompress.runtime import unpack as run_unpack

    click.echo(run_unpack(archive, folder))


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
