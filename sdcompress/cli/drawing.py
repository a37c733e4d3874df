"""Commands that draw: generate, bench."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from sdcompress.cli.options import BUNDLE, FILE, PRECISION, SCHEDULERS, MemorySize, engine_options


@click.command()
@click.argument("bundle", type=BUNDLE)
@click.argument("prompts", nargs=-1, required=True, metavar="PROMPT...")
@click.option("--negative-prompt", default="", help="What the pictures should not show.")
@click.option("--steps", type=click.IntRange(1, 1000), help="Denoising steps.")
@click.option("--guidance-scale", type=click.FloatRange(1.0), help="1.0 switches guidance off.")
@click.option("--seed", type=click.IntRange(0), default=42, show_default=True)
@click.option("--count", type=click.IntRange(1), default=1, show_default=True,
              help="Pictures a prompt, with seeds SEED, SEED + 1, ...")  # fmt: skip
@click.option("--size", metavar="WxH", help="In pixels, for example 512x512.")
@click.option("--image", type=FILE, help="Begin with this picture instead of noise.")
@click.option("--mask", type=FILE, help="Draw only what is white in this picture anew.")
@click.option("--strength", type=click.FloatRange(0, 1, min_open=True),
              help="How much of --image is drawn anew.  [default: 0.8, with a mask 1]")  # fmt: skip
@click.option("--scheduler", help=f"One of: {', '.join(SCHEDULERS)}.")
@click.option("--eta", type=click.FloatRange(0, 1), help="DDIM's share of fresh noise.")
@click.option("--noise", type=click.Choice(["numpy", "torch"]),
              help="torch: random numbers as diffusers has them.  [default: numpy]")  # fmt: skip
@click.option("--prompt-weights", is_flag=True, default=None,
              help="(word:1.2) counts more, [word] less.")  # fmt: skip
@click.option("--long-prompts", is_flag=True, default=None,
              help="Encode prompts of more than 75 tokens in pieces, do not cut them.")  # fmt: skip
@click.option("--fast/--no-fast", default=None,
              help="With the shortcuts that BUNDLE was evaluated with, or without.  "
              "[default: with, if it has any]")  # fmt: skip
@click.option("--cache-interval", type=click.IntRange(1), metavar="N",
              help="Ask the whole UNet at every N-th call only, its outer layers at the others: "
              "quicker, not as exact.")  # fmt: skip
@click.option("--cache-depth", type=click.IntRange(1), metavar="N",
              help="Skip connections of those outer layers.  [default: 1]")  # fmt: skip
@click.option("--guidance-begin", type=click.FloatRange(0, 1), metavar="SHARE",
              help="Share of the calls before guidance begins.  [default: 0]")  # fmt: skip
@click.option("--guidance-end", type=click.FloatRange(0, 1), metavar="SHARE",
              help="Share of the calls after which guidance ends.  [default: 1]")  # fmt: skip
@click.option("--attention-stride", type=click.IntRange(1, 8), metavar="N",
              help="Self-attention at full resolution reads every N-th row and column only.  "
              "[default: 1]")  # fmt: skip
@click.option("--decoder", type=click.Choice(["vae", "tiny"]),
              help="What makes the picture: the VAE's decoder, or the distilled one of a bundle "
              "that has it: quicker, not as exact.  [default: vae]")  # fmt: skip
@click.option("--preview", is_flag=True, help="Write OUTPUT.preview.png every 5 calls while it is "
              "drawn, with the tiny decoder if there is one.")  # fmt: skip
@engine_options
@click.option("--max-memory", type=MemorySize(), metavar="SIZE",
              help="Draw in a way that should stay below this, for example 2GB.")  # fmt: skip
@click.option("--memory-report", is_flag=True,
              help="Tell what each phase was expected to take, and took at most.")  # fmt: skip
@click.option("--keep-loaded", is_flag=True, help="Keep all parts in memory, and decode each "
              "picture as soon as it is denoised.")  # fmt: skip
@click.option("--cache-prompts/--no-cache-prompts", default=True,
              help="Keep encoded prompts for later runs that use parts in turn.  "
              "[default: cache]")  # fmt: skip
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
    settings as text; several are numbered. Text encoder, UNet and decoder are loaded, used for all
    pictures and given back one after the other.

    \b
    Examples:
      sdcompress generate build/unet_int8 "a small red circle above a large blue square"
      sdcompress generate BUNDLE "a photo of an astronaut riding a horse on mars" \\
          --negative-prompt "low resolution, blurry" --seed 42 --count 20 --size 512x512
      sdcompress generate BUNDLE "a lighthouse" --max-memory 1.5GB --memory-report
      sdcompress generate BUNDLE "a lighthouse" --cache-interval 3 --attention-stride 2
      sdcompress generate BUNDLE "a castle at night" --image castle.jpg --strength 0.6
      sdcompress generate BUNDLE "a golden crown" --image portrait.png --mask hair.png
    """
    from sdcompress.drawing import Begin, Engine, draw

    begin = Begin(**{field.name: options.pop(field.name) for field in fields(Begin)})
    engine = Engine(**{field.name: options.pop(field.name) for field in fields(Engine)})
    for file in draw(bundle, prompts, output, begin=begin, engine=engine, **options):
        click.echo(file)


@click.command()
@click.argument("bundle", type=BUNDLE)
@click.option("--prompt", default="a photo of a green star", show_default=True)
@click.option("--steps", type=click.IntRange(2, 1000), help="[default: the bundle's]")
@click.option("--streams", type=click.IntRange(1), multiple=True,
              help="May be repeated.  [default: 1, 2, 4 ... processors]")  # fmt: skip
@click.option("--batch", "batches", type=click.IntRange(1), multiple=True,
              help="May be repeated.  [default: 1, 2, 4]")  # fmt: skip
@click.option("--threads", type=click.IntRange(1), multiple=True,
              help="May be repeated.  [default: OpenVINO's choice]")  # fmt: skip
@click.option("--images", type=click.IntRange(2), default=4, show_default=True,
              help="Pictures for each measurement.")  # fmt: skip
@click.option("--device", default="CPU", show_default=True, help="OpenVINO device.")
@click.option("--precision", type=PRECISION, help="Execution precision.")
def bench(bundle: Path, device: str, precision: str | None, **options: Any) -> None:
    """Measure latency, throughput and memory of BUNDLE for a grid of streams and batches.

    Each choice runs in a process of its own. The best ones are marked and remembered on this
    machine: `sdcompress generate --mode latency` and `--mode throughput` use them. Then the time
    from starting the program to the first picture is measured, without and with --cache-dir.
    """
    from sdcompress.benching import bench as run_bench

    for line in run_bench(bundle, device=device, precision=precision, **options):
        click.echo(line)
