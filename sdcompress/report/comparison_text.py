"""A comparison in a terminal, as CSV and as JSON."""

import csv
import io
import json
from dataclasses import asdict

from sdcompress.report.comparison import Cell, Comparison


def as_csv(comparison: Comparison) -> str:
    """The table as CSV, one row for each figure; incomparable figures are in brackets."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["figure", *comparison.names])
    for row in comparison.rows:
        writer.writerow([row.name, *(_plain(cell) for cell in row.cells)])
    for metric in dict.fromkeys(one.metric for one in comparison.differences):
        found = {one.name: one for one in comparison.differences if one.metric == metric}
        for part in ("mean", "low", "high", "samples"):
            values = [getattr(found[one], part) if one in found else "" for one in comparison.names]
            title = f"{metric}, paired difference from {comparison.names[0]}: {part}"
            writer.writerow([title, *values])
    return stream.getvalue()


def as_json(comparison: Comparison) -> str:
    """Everything as JSON."""
    return json.dumps(asdict(comparison), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def render(comparison: Comparison) -> None:
    """Prints the comparison as tables, the best values bold and starred."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    table = Table("", *map(escape, comparison.names))
    for row in comparison.rows:
        table.add_row(escape(row.name), *(_rich(cell) for cell in row.cells))
    console.print(table)
    if comparison.differences:
        paired = Table("paired difference", "metric", "mean", "95 % interval", "pairs")
        for one in comparison.differences:
            interval = f"{one.low:+.3f} to {one.high:+.3f}"
            label = escape(f"{one.name} - {comparison.names[0]}")
            paired.add_row(
                label, escape(one.metric), f"{one.mean:+.3f}", interval, str(one.samples)
            )
        console.print(paired)
    for note in comparison.notes:
        console.print(f"[yellow]note[/] {escape(note)}", highlight=False)


def _plain(cell: Cell) -> str:
    return cell.text if cell.comparable else f"({cell.text})"


def _rich(cell: Cell) -> str:
    if not cell.comparable:
        return f"[dim]({cell.text})[/]"
    return f"[bold green]{cell.text} *[/]" if cell.best else cell.text
