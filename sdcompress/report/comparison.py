"""Puts several reports side by side and marks the best value of each row."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdcompress.errors import InputError
from sdcompress.report.document import SCHEMA


@dataclass(frozen=True)
class Row:
    """One figure of every report. `best` holds the columns with the best value."""

    name: str
    values: tuple[str, ...]
    best: frozenset[int]


@dataclass(frozen=True)
class Comparison:
    """A table of reports, and what keeps its columns from being comparable."""

    names: tuple[str, ...]
    rows: tuple[Row, ...]
    warnings: tuple[str, ...]


def compare(folders: Sequence[Path | str]) -> Comparison:
    """Reads the report of each result folder. Raises InputError when one has none."""
    reports = [_read(Path(folder)) for folder in folders]
    rows = [_row(name, form, better, read, reports) for name, form, better, read in _FIGURES]
    names = tuple(Path(folder).resolve().name for folder in folders)
    return Comparison(names, tuple(rows), tuple(_warnings(reports)))


def render(comparison: Comparison) -> None:
    """Prints the comparison as a table, the best values bold and starred."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table("", *comparison.names)
    for row in comparison.rows:
        cells = [
            f"[bold green]{value} *[/]" if index in row.best else value
            for index, value in enumerate(row.values)
        ]
        table.add_row(row.name, *cells)
    console.print(table)
    for warning in comparison.warnings:
        console.print(f"[yellow]note[/] {warning}", highlight=False)


def _read(folder: Path) -> dict[str, Any]:
    for file in (folder / "report" / "report.json", folder / "report.json"):
        if file.is_file():
            break
    else:
        raise InputError(
            f"{folder}: no report.json; give result folders of `sdcompress quantize` or `evaluate`"
        )
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file}: not readable as JSON: {error}") from None
    if not isinstance(report, dict) or report.get("schema") != SCHEMA:
        raise InputError(f"{file}: not a report of schema {SCHEMA}; run the evaluation again")
    try:
        for read in (*(figure[3] for figure in _FIGURES), *(check[1] for check in _MUST_AGREE)):
            read(report)
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise InputError(f"{file}: a figure is missing or no number: {error!r}") from None
    return report


def _row(
    name: str, form: str, better: str, read: Callable[[Any], Any], reports: list[dict[str, Any]]
) -> Row:
    values = [read(report) for report in reports]
    texts = tuple(form.format(value) for value in values)
    if better == "none" or len(set(texts)) == 1:
        return Row(name, texts, frozenset())
    best = min(values) if better == "low" else max(values)
    shown = form.format(best)
    return Row(name, texts, frozenset(i for i, text in enumerate(texts) if text == shown))


def _warnings(reports: list[dict[str, Any]]) -> list[str]:
    return [
        f"the reports have different {what}: their figures are not comparable"
        for what, read in _MUST_AGREE
        if any(read(report) != read(reports[0]) for report in reports[1:])
    ]


def _megabytes(*path: str) -> Callable[[Any], Any]:
    def read(report: Any) -> Any:
        for key in path:
            report = report[key]
        return report / 1e6

    return read


def _speed(key: str) -> Callable[[Any], Any]:
    return lambda r: r["performance"]["baseline"][key] / r["performance"]["compressed"][key]


_MUST_AGREE: tuple[tuple[str, Callable[[Any], Any]], ...] = (
    ("CLIP scorers", lambda r: r["quality"]["clip_score"]["scorer"]),
    ("models", lambda r: r["model"]["revision"]),
    ("prompts or seeds", lambda r: [(s["prompt"], s["seed"]) for s in r["samples"]]),
    ("sampling settings", lambda r: r["recipe"]["sampling"]),
    ("processors", lambda r: r["environment"]["cpu"]),
)
_FIGURES: tuple[tuple[str, str, str, Callable[[Any], Any]], ...] = (
    ("status", "{}", "none", lambda r: r["status"]),
    ("UNet method", "{}", "none", lambda r: r["components"]["unet"]["method"]),
    ("CLIP score", "{:.2f}", "high", lambda r: r["quality"]["clip_score"]["compressed"]),
    ("CLIP difference", "{:+.3f}", "high", lambda r: r["quality"]["clip_score"]["difference"]),
    ("CLIP 95 % low", "{:+.3f}", "high", lambda r: r["quality"]["clip_score"]["ci95"][0]),
    ("SSIM, mean", "{:.4f}", "high", lambda r: r["quality"]["ssim"]["mean"]),
    ("PSNR, mean dB", "{:.2f}", "high", lambda r: r["quality"]["psnr_db"]["mean"]),
    (
        "UNet SQNR, worst dB",
        "{:.1f}",
        "high",
        lambda r: min(r["quality"]["unet_sqnr_db"].values()),
    ),
    ("UNet MB", "{:.1f}", "low", _megabytes("components", "unet", "compressed_bytes")),
    ("on disk MB", "{:.1f}", "low", _megabytes("performance", "compressed", "disk_bytes")),
    ("peak RSS MB", "{:.0f}", "low", _megabytes("performance", "compressed", "peak_rss_bytes")),
    (
        "peak anonymous MB",
        "{:.0f}",
        "low",
        _megabytes("performance", "compressed", "peak_anonymous_bytes"),
    ),
    ("load s", "{:.2f}", "low", lambda r: r["performance"]["compressed"]["load_seconds"]),
    ("UNet step speed-up", "{:.2f}", "high", _speed("unet_step_seconds")),
    ("picture speed-up", "{:.2f}", "high", _speed("image_seconds")),
)
