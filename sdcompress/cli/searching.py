"""The command that searches."""

from typing import TYPE_CHECKING, Any

import click

from sdcompress.cli.making import summarize
from sdcompress.cli.options import ignore_preflight, recipe_arguments

if TYPE_CHECKING:
    from sdcompress.recipe import Recipe


@click.command()
@recipe_arguments
@ignore_preflight
def search(recipe: "Recipe", **options: Any) -> None:
    """Find, group by group, the strongest compression of the UNet that still passes RECIPE's gate.

    The recipe's `search` section says what a group of layers may be compressed to and what is to
    be least. Errors are measured on recorded calibration inputs, costs on the device; what the
    solver chooses is built, drawn with and ranked, and the best is made and evaluated like any
    recipe, on prompts that had no part in the search.

    Writes the recipe that was found, a page with heat maps and the Pareto front, and all figures as
    JSON to --output, and the bundle beside it, with -bundle behind its name. A killed search goes
    on where it was. Exits with 3 when no candidate passes, with 4 when more pictures would have to
    decide. With a full-size model it takes hours: what is expected is told first. docs/search.md
    says how to read the page and what to set.

    \b
    Settings (--set search.KEY=VALUE):
      objective          latency, size or memory of the UNet: what is to be least
      latency_ratio_max  a call's time as a share of what 16 bits take, such as 0.7
      size_max           its file, such as 700MB
      memory_max         its weights as the device keeps them, such as 1.2GB
      grouping           block, part or layer: how fine choices are
      variants           names and methods to choose from
    \b
    Examples:
      sdcompress search unet_int8
      sdcompress search unet_int8 --set search.objective=size --set search.grouping=part
      sdcompress search sd21_base_int8 --set search.latency_ratio_max=0.7
    """
    from sdcompress.progress import TerminalProgress
    from sdcompress.report.search_page import describe_candidates
    from sdcompress.searching import search as run_search

    found = run_search(recipe, progress=TerminalProgress(), **options)
    for line in describe_candidates(found.hunt):
        click.echo(line)
    click.echo(f"chosen: {found.chosen.name}")
    summarize(found.run)
    click.echo(f"search: {found.folder / 'search.html'}")
    click.echo(f"recipe: {found.recipe}")
