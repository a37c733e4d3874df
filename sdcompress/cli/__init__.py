"""The command line: parse, call one function, print. No decisions are made here."""

import logging
from typing import Any

import click

from sdcompress import __version__
from sdcompress.cli import bundles, drawing, making, searching
from sdcompress.errors import SdcompressError


class Reporting(click.Group):
    """Prints the project's faults as messages; the exit code is 2, from the quality gate 3 or 4."""

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


@click.group(cls=Reporting, context_settings={"help_option_names": ["-h", "--help"]})
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


for _command in (
    making.quantize,
    searching.search,
    making.calibrate,
    making.convert,
    making.evaluate,
    making.sweep,
    making.compare,
    making.recipes,
    drawing.generate,
    drawing.bench,
    bundles.inspect,
    bundles.verify,
    bundles.sign,
    bundles.pack,
    bundles.unpack,
):
    main.add_command(_command)
