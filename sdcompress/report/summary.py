"""The summary of a run for the terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

from sdcompress.evaluate.records import BudgetResult, Evaluation


def print_summary(
    console: "Console", evaluation: Evaluation, budgets: Sequence[BudgetResult]
) -> None:
    """Prints what was measured and how each budget was judged."""
    from rich.table import Table

    before, after = evaluation.performance.baseline, evaluation.performance.candidate
    clip = evaluation.quality.clip_score
    table = Table("", "baseline", "compressed", "", title_justify="left")
    change = clip.difference
    interval = f"{change.mean:+.2f} (95 %: {change.low:+.2f} to {change.high:+.2f})"
    table.add_row("CLIP score", f"{clip.baseline:.2f}", f"{clip.candidate:.2f}", interval)
    for name, one, other, unit in (
        ("UNet step", before.unet_step_seconds * 1e3, after.unet_step_seconds * 1e3, "ms"),
        ("picture", before.image_seconds * 1e3, after.image_seconds * 1e3, "ms"),
        ("peak memory", before.peak_rss_bytes / 1e6, after.peak_rss_bytes / 1e6, "MB"),
        ("size on disk", before.disk_bytes / 1e6, after.disk_bytes / 1e6, "MB"),
    ):
        table.add_row(name, f"{one:.1f} {unit}", f"{other:.1f} {unit}", f"x {other / one:.2f}")
    console.print(table)
    verdicts = Table("budget", "limit", "measured", "")
    for budget in budgets:
        side = "<=" if budget.kind == "max" else ">="
        verdict = "[green]passed[/]" if budget.passed else "[red]failed[/]"
        verdicts.add_row(budget.name, f"{side} {budget.limit:g}", f"{budget.value:.4g}", verdict)
    console.print(verdicts)
