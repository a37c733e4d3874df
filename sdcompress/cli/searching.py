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
    be least: time, file or memory. Errors are measured on recorded calibration inputs, costs on
    the device; what the solver chooses is built, drawn with and ranked, and the best is made and
    evaluated like any recipe, on prompts that had no part in the search. Writes the recipe that was
    found, a page with heat maps and the Pareto front, and all figures as JSON to --output, by
    default build/RECIPE-NAME-search, and the bundle beside it, build/RECIPE-NAME-search-bundle. A
    killed search goes on where it was; --fresh measures all anew but the last evaluation. Exits
    with 3 when no candidate passes, with 4 when more pictures would have to decide.

    \b
    Examples:
      sdcompress search unet_int8
      sdcompress search unet_int8 --set search.objective=size --set search.grouping=part
      sdcompress search sd21_base_int8 --set search.latency_ratio_max=0.6
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
