"""Puts several reports side by side: figures, paired differences, and who is on the Pareto front.

Figures are compared only where that means something. Quality needs the same model, prompts, seeds,
settings and scorer, time and memory the same machine; what differs from the first report is marked,
with the reason, and never counts as best.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sdcompress.errors import InputError
from sdcompress.evaluate.statistics import mean_interval
from sdcompress.report.document import SCHEMA
from sdcompress.report.markdown import shortcuts

Group = Literal["clip", "pictures", "performance", "other"]
Obstacles = Mapping[str, Mapping[Group, list[str]]]
_PROMPTS = "prompts or seeds"
_TITLES: dict[Group, str] = {
    "pictures": "quality",
    "clip": "CLIP figures",
    "performance": "time and memory",
}


@dataclass(frozen=True)
class Cell:
    """One figure of one report; `value` is None where there is none."""

    value: float | None
    text: str
    best: bool
    comparable: bool


@dataclass(frozen=True)
class Row:
    """One figure of every report."""

    name: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Difference:
    """A metric's mean paired difference between a report and the first one, 95 % interval."""

    name: str
    metric: str
    samples: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Point:
    """A report's place among the others: what it costs and how good it is."""

    name: str
    quality: float
    seconds: float
    memory_bytes: float
    disk_bytes: float
    on_front: bool


@dataclass(frozen=True)
class Comparison:
    """A table of reports, their paired differences and what keeps columns from being comparable."""

    names: tuple[str, ...]
    rows: tuple[Row, ...]
    differences: tuple[Difference, ...]
    points: tuple[Point, ...]
    notes: tuple[str, ...]


def compare(folders: Sequence[Path | str]) -> Comparison:
    """Reads the report of each result folder. Raises InputError when one has none."""
    names = _names([Path(folder).resolve() for folder in folders])
    reports = dict(zip(names, (_read(Path(folder)) for folder in folders), strict=True))
    obstacles = {name: _obstacles(report, reports[names[0]]) for name, report in reports.items()}
    return Comparison(
        names,
        tuple(_rows(reports, obstacles)),
        tuple(_differences(reports, obstacles)),
        tuple(_points(reports, obstacles)),
        tuple(_notes(obstacles, names[0])),
    )


def _names(folders: Sequence[Path]) -> tuple[str, ...]:
    """The folders' names, with as many parents as it takes to tell them apart.

    A folder that is given twice has a number behind its name.
    """
    different = len(set(folders))
    for depth in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(names)) == different:
            break
    earlier = [names[:index].count(name) for index, name in enumerate(names)]
    return tuple(
        f"{name} ({count + 1})" if count else name
        for name, count in zip(names, earlier, strict=True)
    )


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
        alone, clear = {"": report}, {"": _obstacles(report, report)}
        list(_rows(alone, clear))
        list(_points(alone, clear))
        _scores(report, "clip_score")
    except (KeyError, TypeError, IndexError, ZeroDivisionError, AttributeError) as error:
        raise InputError(
            f"{file}: a figure is missing or no number ({error!r}); run the evaluation again"
        ) from None
    return report


def _obstacles(report: Any, first: Any) -> dict[Group, list[str]]:
    """What differs from the first report, by the figures that cannot be compared for it."""
    found: dict[Group, list[str]] = {"clip": [], "pictures": [], "performance": [], "other": []}
    for groups, what, read in _MUST_AGREE:
        if read(report) != read(first):
            for group in groups:
                found[group].append(what)
    return found


def _notes(obstacles: Obstacles, first: str) -> Iterator[str]:
    for name, groups in obstacles.items():
        for group, what in _TITLES.items():
            # What keeps the pictures from being compared keeps CLIP's scores of them, too.
            known = groups["pictures"] if group == "clip" else []
            reasons = [reason for reason in groups[group] if reason not in known]
            if reasons:
                yield (
                    f"{name}: {what} cannot be compared with {first}'s: "
                    f"different {', '.join(reasons)}"
                )


def _rows(reports: Mapping[str, Any], obstacles: Obstacles) -> Iterator[Row]:
    for figure in (*_ABOVE_METRICS, *_metrics(reports), *_BELOW_METRICS):
        values = {name: figure.read(report) for name, report in reports.items()}
        by = {name: figure.made_by(report) for name, report in reports.items()}
        first = next((one for one in by.values() if one), None)
        fair = [
            name
            for name in reports
            if not obstacles[name][figure.group] and by[name] in (None, first)
        ]
        best = _best({name: values[name] for name in fair}, figure)
        yield Row(
            figure.name,
            tuple(
                Cell(
                    value if isinstance(value, int | float) else None,
                    figure.text(value),
                    name in best,
                    name in fair,
                )
                for name, value in values.items()
            ),
        )


def _metrics(reports: Mapping[str, Any]) -> Iterator["_Figure"]:
    """A figure for every metric that any of the reports has."""
    cards = {
        one["name"]: one for report in reports.values() for one in report["quality"]["metrics"]
    }
    for name, card in cards.items():
        sign = "+" if card["kind"] == "picture" else ""
        title = f"{card['title']}, difference" if card["kind"] == "picture" else card["title"]
        yield _Figure(
            f"{title}, {card['unit']}" if card["unit"] else title,
            f"{{:{sign}.{card['digits']}f}}",
            "high" if card["better"] == "higher" else "low",
            "pictures",
            _of_metric(name, "value"),
            _of_metric(name, "made_by"),
        )


def _best(values: Mapping[str, Any], figure: "_Figure") -> set[str]:
    """Those that show the best value; none when all show the same or nothing is better."""
    known = {name: value for name, value in values.items() if value is not None}
    texts = {figure.text(value) for value in known.values()}
    if figure.better == "none" or len(texts) < 2:
        return set()
    shown = figure.text((min if figure.better == "low" else max)(known.values()))
    return {name for name, value in known.items() if figure.text(value) == shown}


def _differences(reports: Mapping[str, Any], obstacles: Obstacles) -> Iterator[Difference]:
    """Compressed against compressed, picture by picture, for the metrics both reports have."""
    first, *others = reports
    for name in others:
        if set(obstacles[name]["pictures"]) - {_PROMPTS}:  # those that both have still pair up
            continue
        measured_by = {one["name"]: one["made_by"] for one in reports[first]["quality"]["metrics"]}
        for metric in reports[name]["quality"]["metrics"]:
            alike = metric["made_by"] == measured_by.get(metric["name"])
            if metric["kind"] == "set" or not alike:
                continue
            here, there = (_scores(reports[one], metric["name"]) for one in (name, first))
            shared = [pair for pair in here if pair in there]
            if len(shared) < 2:
                continue
            found = mean_interval(np.array([here[pair] - there[pair] for pair in shared]))
            yield Difference(name, metric["title"], len(shared), found.mean, found.low, found.high)


def _shot(sample: Any) -> tuple[str, str, int]:
    return sample["prompt"], sample["negative_prompt"], sample["seed"]


def _identity(report: Any) -> tuple[Any, ...]:
    model = report["model"]
    return model["revision"], model["variant"], model["loras"]


def _scores(report: Any, metric: str) -> dict[tuple[str, str, int], float]:
    """A metric's value of each compressed picture, or each pair, by prompts and seed."""
    found = {}
    for sample in report["samples"]:
        if metric in sample["scores"]:
            value = sample["scores"][metric]["compressed"]
        elif metric in sample["likeness"]:
            value = sample["likeness"][metric]
        else:
            continue
        found[_shot(sample)] = value
    return found


def _points(reports: Mapping[str, Any], obstacles: Obstacles) -> Iterator[Point]:
    """The comparable reports, and the baseline of the first as one more.

    Time and memory are those of that baseline times each report's own ratio, so that what the
    machine did between the runs cancels.
    """
    name, first = next(iter(reports.items()))
    costs = first["performance"]["baseline"]
    seconds, memory = costs["image_seconds"], costs["peak_rss_bytes"]
    quality = first["quality"]["clip_score"]["baseline"]
    places = [(f"baseline of {name}", quality, seconds, memory, costs["disk_bytes"])]
    places += [
        (
            name,
            report["quality"]["clip_score"]["compressed"],
            seconds * report["performance"]["ratios"]["image_seconds"]["median"],
            memory * report["performance"]["ratios"]["peak_rss_bytes"]["median"],
            report["performance"]["compressed"]["disk_bytes"],
        )
        for name, report in reports.items()
        if not obstacles[name]["clip"] and not obstacles[name]["performance"]
    ]
    for place in places:
        beaten = any(dominates(other[1:], place[1:]) for other in places if other is not place)
        yield Point(*place, on_front=not beaten)


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """At least as good in quality and every cost, and better in one of them."""
    better = (-one[0], *one[1:])
    worse = (-other[0], *other[1:])
    return all(a <= b for a, b in zip(better, worse, strict=True)) and better != worse


@dataclass(frozen=True)
class _Figure:
    name: str
    form: str
    better: Literal["low", "high", "none"]
    group: Group
    read: Callable[[Any], Any]
    made_by: Callable[[Any], Any] = lambda _: None  # figures that others made are no match

    def text(self, value: Any) -> str:
        return "-" if value is None else self.form.format(value)


def _path(*path: str, scale: float = 1.0) -> Callable[[Any], Any]:
    def read(report: Any) -> Any:
        for key in path:
            report = report[key]
        return None if report is None else report * scale

    return read


def _speed(key: str) -> Callable[[Any], float]:
    return lambda report: 1 / float(report["performance"]["ratios"][key]["median"])


def _of_metric(name: str, key: str) -> Callable[[Any], Any]:
    def read(report: Any) -> Any:
        found = [one for one in report["quality"]["metrics"] if one["name"] == name]
        return found[0][key] if found else None

    return read


def _compressed(key: str, scale: float) -> Callable[[Any], Any]:
    return _path("performance", "compressed", key, scale=scale)


_MUST_AGREE: tuple[tuple[tuple[Group, ...], str, Callable[[Any], Any]], ...] = (
    (("clip",), "CLIP scorers", lambda r: r["quality"]["clip_score"]["scorer"]),
    (("clip", "pictures", "performance"), "models", _identity),
    (
        ("clip", "pictures"),
        _PROMPTS,
        lambda r: [_shot(sample) for sample in r["samples"]],
    ),
    (("clip", "pictures", "performance"), "sampling settings", lambda r: r["recipe"]["sampling"]),
    (
        ("performance",),
        "processors",
        lambda r: (r["environment"]["cpu"], r["environment"]["threads"]),
    ),
    (("performance",), "devices", lambda r: r["environment"]["device"]),
    (
        ("performance",),
        "execution precisions",
        lambda r: r["environment"]["execution_precisions"]["compressed"]["unet"],
    ),
    (("performance",), "OpenVINO", lambda r: r["environment"]["packages"]["openvino"]),
)
_ABOVE_METRICS = (
    _Figure("status", "{}", "none", "other", lambda r: r["status"]),
    _Figure("shortcuts", "{}", "none", "other", lambda r: shortcuts(r) or "none"),
    _Figure("UNet method", "{}", "none", "other", lambda r: r["components"]["unet"]["method"]),
    _Figure("CLIP score", "{:.2f}", "high", "clip", _path("quality", "clip_score", "compressed")),
    _Figure(
        "CLIP 95 % low",
        "{:+.3f}",
        "high",
        "clip",
        lambda r: r["quality"]["clip_score"]["ci95"][0],
    ),
)
_BELOW_METRICS = (
    _Figure(
        "UNet SQNR, worst dB",
        "{:.1f}",
        "high",
        "pictures",
        lambda r: min(r["quality"]["unet_sqnr_db"].values()),
    ),
    _Figure(
        "UNet MB",
        "{:.1f}",
        "low",
        "other",
        _path("components", "unet", "compressed_bytes", scale=1e-6),
    ),
    _Figure("on disk MB", "{:.1f}", "low", "other", _compressed("disk_bytes", 1e-6)),
    _Figure("peak RSS MB", "{:.0f}", "low", "performance", _compressed("peak_rss_bytes", 1e-6)),
    _Figure(
        "peak anonymous MB",
        "{:.0f}",
        "low",
        "performance",
        _compressed("peak_anonymous_bytes", 1e-6),
    ),
    _Figure("load s", "{:.2f}", "none", "performance", _compressed("load_seconds", 1.0)),
    _Figure("picture s", "{:.3f}", "none", "performance", _compressed("image_seconds", 1.0)),
    _Figure("UNet step speed-up", "{:.2f}", "high", "performance", _speed("unet_step_seconds")),
    _Figure("picture speed-up", "{:.2f}", "high", "performance", _speed("image_seconds")),
)
