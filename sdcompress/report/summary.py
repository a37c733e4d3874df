"""The summary of a run for the terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

from sdcompress.evaluate.records import BudgetResult, Evaluation

_COLOURS = {"passed": "green", "failed": "red", "undecided": "yellow"}


def print_summary(
    console: "Console", evaluation: Evaluation, budgets: Sequence[BudgetResult]
) -> None:
    """Prints what was measured and how each budget was judged."""
    from rich.table import Table

    before, after = evaluation.performance.baseline, evaluation.performance.candidate
    clip = evaluation.quality.of("clip_score").change
    table = Table("", "baseline", "compressed", "", title_justify="left")
    change = clip.value
    interval = f"{change.value:+.2f} (95 %: {change.low:+.2f} to {change.high:+.2f})"
    table.add_row("CLIP score", f"{clip.baseline:.2f}", f"{clip.candidate:.2f}", interval)
    for key, name, scale, unit in (
        ("unet_step_seconds", "UNet step", 1e3, "ms"),
        ("image_seconds", "picture", 1e3, "ms"),
        ("peak_rss_bytes", "peak memory", 1e-6, "MB"),
    ):
        medians = (f"{getattr(side, key).median * scale:.1f} {unit}" for side in (before, after))
        ratio = evaluation.performance.ratios[key]
        table.add_row(name, *medians, f"x {ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})")
    sizes = (before.disk_bytes, after.disk_bytes)
    megabytes = (f"{size / 1e6:.1f} MB" for size in sizes)
    table.add_row("size on disk", *megabytes, f"x {sizes[1] / sizes[0]:.2f}")
    console.print(table)
    verdicts = Table("budget", "limit", "measured", "")
    for budget in budgets:
        side = "<=" if budget.kind == "max" else ">="
        value = f"{budget.value:.4g}"
        if budget.low is not None and budget.high is not None:
            value += f" ({budget.low:.4g} to {budget.high:.4g})"
        colour = _COLOURS[budget.outcome]
        outcome = f"[{colour}]{budget.outcome}[/]"
        verdicts.add_row(budget.name, f"{side} {budget.limit:g}", value, outcome)
    console.print(verdicts)
