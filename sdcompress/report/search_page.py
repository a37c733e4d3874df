"""What a search found as files: the recipe, a self-contained HTML page, and everything as JSON."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sdcompress.evaluate.records import Estimate
from sdcompress.recipe import Recipe
from sdcompress.report.charts import CONTENT, FIDELITY, front_chart, heat_map
from sdcompress.report.comparison import dominates
from sdcompress.report.html import render_page
from sdcompress.search.records import Candidate, Hunt
from sdcompress.search.sensitivity import WHOLE, Sensitivity, decibels
from sdcompress.store import write_record

PAGE, FIGURES = "search.html", "search.json"
_UNITS = {"latency": ("ms a call", 1e3), "size": ("MB", 1e-6), "memory": ("MB in memory", 1e-6)}
_COMPOSED = 1  # the column that is too long for a terminal


def write_search(folder: Path, recipe: Recipe, hunt: Hunt, verdict: str) -> None:
    """Writes search.json and search.html; `verdict` is what became of the candidates, in a line."""
    document = _document(recipe, hunt) | {"verdict": verdict}
    write_record(folder / FIGURES, dict[str, Any], document)
    (folder / PAGE).write_text(render_search(recipe, hunt, verdict), encoding="utf-8")


def candidate_rows(hunt: Hunt) -> Iterator[Sequence[str]]:
    """A table's rows, the heading first."""
    checked = any("checker" in one.figures for one in hunt.candidates)
    yield (
        "candidate",
        "layers",
        "a call",
        "by 16 bits",
        "file",
        "CLIP score",
        "95 % interval",
        "SSIM",
        *(["checker"] if checked else []),
        "least SQNR",
        "budgets",
        "front",
    )
    for one in hunt.candidates:
        yield (
            one.name,
            _composition(one),
            f"{one.call_seconds * 1e3:.1f} ms",
            f"x {one.call_ratio:.2f}",
            f"{one.stored_bytes / 1e6:.1f} MB",
            _figure(one, "clip_score", "{:+.2f}"),
            _interval(one.figures.get("clip_score")),
            _figure(one, "ssim", "{:.3f}"),
            *([_figure(one, "checker", "{:+.0f} %")] if checked else []),
            "-" if one.least_unet_db is None else f"{one.least_unet_db:.1f} dB",
            _standing(one),
            "yes" if one.on_front else "",
        )


def describe_candidates(hunt: Hunt) -> Iterator[str]:
    """Yields the lines of the same table for a terminal."""
    columns = [list(one) for one in zip(*candidate_rows(hunt), strict=True)]
    del columns[_COMPOSED]
    widths = [max(len(cell) for cell in column) for column in columns]
    for cells in zip(*columns, strict=True):
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        yield "  ".join(padded).rstrip()


def render_search(recipe: Recipe, hunt: Hunt, verdict: str) -> str:
    """Turns what was found into a page."""
    objective = recipe.search.objective
    label, scale = _UNITS[objective]
    return render_page(
        "search.html.j2",
        name=recipe.name,
        objective=objective,
        verdict=verdict,
        processor=hunt.processor,
        samples=hunt.candidates[0].samples,
        candidate_rows=list(candidate_rows(hunt)),
        fronts=[
            (title, front_chart(points, label, title))
            for metric, title in (("clip_score", "CLIP score"), ("ssim", "SSIM"))
            if (points := list(_points(hunt, metric, objective, scale)))
        ],
        heat_maps=list(_heat_maps(hunt.sensitivities)),
        group_rows=list(_group_rows(hunt)),
        drawn_rows=list(_drawn_rows(hunt)),
    )


def _document(recipe: Recipe, hunt: Hunt) -> dict[str, Any]:
    return {
        "schema": 1,
        "recipe": recipe.as_dict(),
        "processor": hunt.processor,
        "groups": [asdict(one) for one in hunt.groups],
        "sensitivity": {name: asdict(one) for name, one in hunt.sensitivities.items()},
        "cost": {name: asdict(one) for name, one in hunt.costs.items()},
        "options": [asdict(one) for one in hunt.options],
        "candidates": [_candidate(one) for one in hunt.candidates],
    }


def _candidate(one: Candidate) -> dict[str, Any]:
    figures = {name: asdict(value) for name, value in one.figures.items()}
    plain = {name: value for name, value in vars(one).items() if name not in ("method", "figures")}
    return plain | {"method": one.method.model_dump(mode="json"), "figures": figures}


def _composition(candidate: Candidate) -> str:
    """How many groups are of which variant; of a method that is no choice, its name."""
    if candidate.choice is None:
        return candidate.method.method
    counted = Counter(candidate.choice.values()).most_common()
    return ", ".join(f"{count} {name}" for name, count in counted)


def _standing(candidate: Candidate) -> str:
    """What the budgets that were judged say, and the limits."""
    return "; ".join([candidate.outcome or "-", *candidate.excess])


def _figure(candidate: Candidate, metric: str, form: str) -> str:
    """A figure as text; what overflows has none."""
    found = candidate.figures.get(metric)
    return "-" if found is None else form.format(found.value)


def _interval(estimate: Estimate | None) -> str:
    if estimate is None or estimate.low is None or estimate.high is None:
        return "-"
    return f"{estimate.low:+.2f} to {estimate.high:+.2f}"


def _points(
    hunt: Hunt, metric: str, objective: str, scale: float
) -> Iterator[tuple[str, float, float, bool]]:
    places = {
        one.name: (one.cost(objective) * scale, one.figures[metric].value)
        for one in hunt.candidates
        if one.figures
    }
    for name, (x, y) in places.items():
        yield name, x, y, not any(dominates((b, a), (y, x)) for a, b in places.values())


def _heat_maps(sensitivities: Mapping[str, Sensitivity]) -> Iterator[tuple[str, str]]:
    """Yields captions and maps, of each variant one for each yardstick."""
    for variant, sensitivity in sensitivities.items():
        rows = [one for one in sensitivity.errors if one.group != WHOLE]
        columns = [str(timestep) for timestep in sensitivity.timesteps]
        yield (
            f"{variant}: fidelity",
            heat_map(
                f"SQNR of the prediction with one group as {variant}",
                [one.group for one in rows],
                columns,
                [[decibels(share) for share in one.noise] for one in rows],
                FIDELITY,
            ),
        )
        seen = {one.group: one.content for one in rows if one.content}
        if seen:
            yield (
                f"{variant}: content",
                heat_map(
                    f"How far CLIP's view moves with one group as {variant}",
                    list(seen),
                    columns,
                    [[max(loss, CONTENT.best) for loss in one] for one in seen.values()],
                    CONTENT,
                ),
            )


def _group_rows(hunt: Hunt) -> Iterator[Sequence[str]]:
    yield "group", "variant", "SQNR expected", "content expected", "time", "file", "in memory"
    for one in hunt.options:
        yield (
            one.group,
            one.variant,
            f"{decibels(one.noise):.1f} dB" if one.noise else "-",
            f"{one.content:.4f}" if one.content else "-",
            f"{one.seconds * 1e3:.2f} ms",
            f"{one.stored_bytes / 1e3:.0f} kB",
            f"{one.executed_bytes / 1e3:.0f} kB",
        )


def _drawn_rows(hunt: Hunt) -> Iterator[Sequence[str]]:
    yield "variant", "group", "SQNR of a call", "of the latents", "SSIM", "content", "checker"
    for name, sensitivity in hunt.sensitivities.items():
        for one in sensitivity.drawn:
            calls = {error.group: error.mean_noise for error in sensitivity.errors}
            yield (
                name,
                one.group,
                f"{decibels(calls[one.group]):.1f} dB",
                f"{decibels(one.noise):.1f} dB",
                "-" if one.ssim is None else f"{one.ssim:.3f}",
                f"{one.content:.4f}",
                "-" if one.checker is None else f"{one.checker:+.0f} %",
            )
