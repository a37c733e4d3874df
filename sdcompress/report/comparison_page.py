"""A comparison as one self-contained HTML page, the Pareto fronts drawn."""

from collections.abc import Iterator, Sequence

from sdcompress.report.charts import front_chart
from sdcompress.report.comparison import Comparison, dominates
from sdcompress.report.html import render_page

_COSTS = (
    ("seconds a picture", "seconds", 1.0),
    ("peak resident memory in MB", "memory_bytes", 1e-6),
    ("size on disk in MB", "disk_bytes", 1e-6),
)


def render_comparison(comparison: Comparison) -> str:
    """Turns a comparison into a page."""
    return render_page(
        "comparison.html.j2",
        comparison=comparison,
        difference_rows=list(_difference_rows(comparison)),
        front_rows=list(_front_rows(comparison)),
        charts=[(label, _front(comparison, key, label, scale)) for label, key, scale in _COSTS],
    )


def _front(comparison: Comparison, key: str, label: str, scale: float) -> str:
    """One cost against quality. The front is that of these two alone, not of all costs."""
    places = [(one.name, getattr(one, key) * scale, one.quality) for one in comparison.points]
    points = [
        (name, x, y, not any(dominates((b, a), (y, x)) for _, a, b in places))
        for name, x, y in places
    ]
    return front_chart(points, label, "CLIP score")


def _front_rows(comparison: Comparison) -> Iterator[Sequence[str]]:
    yield "report", "CLIP score", *(label for label, _, _ in _COSTS), "beaten in everything"
    for one in comparison.points:
        costs = (f"{getattr(one, key) * scale:.3f}" for _, key, scale in _COSTS)
        yield one.name, f"{one.quality:.2f}", *costs, "no" if one.on_front else "yes"


def _difference_rows(comparison: Comparison) -> Iterator[Sequence[str]]:
    yield "report", "metric", "mean difference", "95 % interval", "pairs"
    for one in comparison.differences:
        interval = f"{one.low:+.4f} to {one.high:+.4f}"
        yield one.name, one.metric, f"{one.mean:+.4f}", interval, str(one.samples)
