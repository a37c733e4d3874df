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
    for one in comparison.differences:
        column = comparison.names.index(one.name)
        cells = [""] * len(comparison.names)
        cells[column] = f"{one.mean:+.4f} ({one.low:+.4f} to {one.high:+.4f})"
        writer.writerow([f"{one.metric} - {comparison.names[0]}'s", *cells])
    return stream.getvalue()


def as_json(comparison: Comparison) -> str:
    """Everything as JSON."""
    return json.dumps(asdict(comparison), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def render(comparison: Comparison) -> None:
    """Prints the comparison as tables, the best values bold and starred."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table("", *comparison.names)
    for row in comparison.rows:
        table.add_row(row.name, *(_rich(cell) for cell in row.cells))
    console.print(table)
    if comparison.differences:
        paired = Table("paired difference", "metric", "mean", "95 % interval", "pairs")
        for one in comparison.differences:
            interval = f"{one.low:+.3f} to {one.high:+.3f}"
            label = f"{one.name} - {comparison.names[0]}"
            paired.add_row(label, one.metric, f"{one.mean:+.3f}", interval, str(one.samples))
        console.print(paired)
    for note in comparison.notes:
        console.print(f"[yellow]note[/] {note}", highlight=False)


def _plain(cell: Cell) -> str:
    return cell.text if cell.comparable else f"({cell.text})"


def _rich(cell: Cell) -> str:
    if not cell.comparable:
        return f"[dim]({cell.text})[/]"
    return f"[bold green]{cell.text} *[/]" if cell.best else cell.text
