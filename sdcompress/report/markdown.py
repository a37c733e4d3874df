"""The report for reading: Markdown, the verdict first."""

from collections.abc import Iterable, Mapping
from typing import Any

from sdcompress.recipe import Runtime

_NAMES = {
    "load_seconds": ("load", "s", 2),
    "unet_step_seconds": ("UNet step", "ms", 1),
    "image_seconds": ("picture", "s", 2),
    "peak_rss_bytes": ("peak resident memory", "MB", 0),
    "peak_anonymous_bytes": ("peak anonymous memory", "MB", 0),
    "load_peak_rss_bytes": ("peak resident memory while loading", "MB", 0),
    "load_peak_anonymous_bytes": ("peak anonymous memory while loading", "MB", 0),
    "draw_peak_rss_bytes": ("peak resident memory while drawing", "MB", 0),
    "draw_peak_anonymous_bytes": ("peak anonymous memory while drawing", "MB", 0),
    "least_memory_bytes": ("smallest memory limit that suffices", "MB", 0),
    "disk_bytes": ("size on disk", "MB", 1),
}
_SCALES = {"s": 1.0, "ms": 1e3, "MB": 1e-6}


def write_markdown(report: Mapping[str, Any]) -> str:
    """Turns a report document into Markdown."""
    recipe, model = report["recipe"], report["model"]
    parts = [
        f"# {recipe['name']}: {report['status']}",
        f"{_sentence(recipe['description'])}Model `{model['id']}` at `{model['revision']}`. "
        f"{drawn_with(report)}".rstrip(),
        *_section("Budgets", budget_rows(report)),
        *_section("Quality", quality_rows(report)),
        *_notes(report),
        *_section("Time and memory", performance_rows(report)),
        *_section("Components", component_rows(report)),
        *_section("SQNR by timestep", sqnr_rows(report)),
        decoders_alone(report),
        "## Pictures",
        "![baseline above, compressed below, the least similar pairs first](grid.png)",
        *_section("Stages", stage_rows(report)),
        *_section("Environment", environment_rows(report)),
    ]
    return "\n\n".join(parts) + "\n"


def decoders_alone(report: Mapping[str, Any]) -> str:
    """Tells how alike the VAE decoders are by themselves."""
    found = report["quality"]["decoder_ssim"]
    return (
        f"The VAE decoders alone, on the same latents of {len(found)} prompts: SSIM "
        f"{sum(found) / len(found):.4f}, at worst {min(found):.4f}."
    )


def drawn_with(report: Mapping[str, Any]) -> str:
    """Tells with which shortcuts the compressed model was drawn; nothing if with none."""
    found = shortcuts(report)
    if not found:
        return ""
    return (
        f"The compressed model is drawn with shortcuts: {found}. Pictures and times are so; SQNR "
        "compares the networks without."
    )


def shortcuts(report: Mapping[str, Any]) -> str:
    """What the recipe's section `runtime` changes, in words."""
    usual = Runtime().model_dump()
    given = report["recipe"].get("runtime", {})
    return ", ".join(f"{key} {value}" for key, value in given.items() if value != usual.get(key))


def _sentence(text: str) -> str:
    return f"{text.rstrip('.')}. " if text else ""


def _section(title: str, rows: Iterable[tuple[str, ...]]) -> list[str]:
    header, *body = rows
    lines = [header, tuple("---" for _ in header), *body]
    cells = ((cell.replace("|", "\\|") for cell in row) for row in lines)
    return [f"## {title}", "\n".join("| " + " | ".join(row) + " |" for row in cells)]


def budget_rows(report: Mapping[str, Any]) -> Iterable[tuple[str, ...]]:
    """Yields a header and one row for each budget."""
    yield "budget", "limit", "measured", "verdict"
    for budget in report["budgets"]:
        side = "at most" if budget["kind"] == "max" else "at least"
        outcome = verdict(budget)
        if budget["outcome"] != "passed":
            outcome = f"**{outcome}**"
        yield budget["name"], f"{side} {budget['limit']:g}", measured(budget), outcome


def measured(budget: Mapping[str, Any]) -> str:
    """A budget's figure, with its interval where it is an estimate."""
    value = f"{budget['value']:.4g}"
    if budget["low"] is not None:
        value += f" (95 %: {budget['low']:.4g} to {budget['high']:.4g})"
    return value


def verdict(budget: Mapping[str, Any]) -> str:
    """A budget's outcome in words; an open one says what would decide it."""
    if budget["outcome"] != "undecided":
        return str(budget["outcome"])
    if budget["more"] is None:
        return "undecided: on the limit"
    return f"undecided: needs about {budget['more']} more samples"


def quality_rows(report: Mapping[str, Any]) -> Iterable[tuple[str, ...]]:
    """Yields a header and one row for each metric, what harmless changes do to it beside it."""
    quality = report["quality"]
    yardsticks = quality["yardsticks"]
    yield "metric", "baseline", "compressed", "change or likeness", "samples", *yardsticks.values()
    for metric in quality["metrics"]:
        digits = metric["digits"]
        sides = (_figure(metric[side], digits) for side in ("baseline", "compressed"))
        others = (metric["yardsticks"].get(name) for name in yardsticks)
        yield (
            f"{metric['title']}, {metric['unit']}" if metric["unit"] else metric["title"],
            *sides,
            estimate(metric, metric, interval=True),
            str(metric["samples"]),
            *(estimate(metric, one) if one else "-" for one in others),
        )


def estimate(
    metric: Mapping[str, Any], change: Mapping[str, Any], *, interval: bool = False
) -> str:
    """A change's value, signed where it is a difference, with its interval if wanted."""
    sign = "+" if metric["kind"] == "picture" else ""
    digits = metric["digits"]
    text = f"{change['value']:{sign}.{digits}f}"
    if interval and change["ci95"]:
        low, high = change["ci95"]
        text += f" ({low:{sign}.{digits}f} to {high:{sign}.{digits}f})"
    return text


def _figure(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _notes(report: Mapping[str, Any]) -> list[str]:
    quality = report["quality"]
    lines = [
        f"- {one['title']} ({one['better']} is better): {meaning(one)}"
        for one in quality["metrics"]
    ]
    lines += [f"- {one['name']} was not measured: {one['reason']}." for one in quality["skipped"]]
    return ["In brackets: 95 % intervals, paired.", "\n".join(lines)]


def meaning(metric: Mapping[str, Any]) -> str:
    """What a metric is, the values it can have and what measured it."""
    low, high = metric["low"], metric["high"]
    span = "can have any value"
    if low is not None:
        span = f"is {low:g} or more" if high is None else f"is from {low:g} to {high:g}"
    return f"{metric['definition']}. It {span}. Measured by {metric['made_by']}."


def performance_rows(report: Mapping[str, Any]) -> Iterable[tuple[str, ...]]:
    """Yields a header and one row for each figure: name, medians of both sides, their ratio."""
    performance = report["performance"]
    baseline, compressed = performance["baseline"], performance["compressed"]
    yield "figure", "baseline", "compressed", "compressed / baseline"
    for key, (name, unit, digits) in _NAMES.items():
        before, after = baseline[key], compressed[key]
        if before is None or after is None:
            continue
        sides = (f"{one * _SCALES[unit]:.{digits}f} {unit}" for one in (before, after))
        yield name, *sides, ratio(performance, key)
    for part, seconds in baseline["parts_seconds"].items():
        sides = (f"{one:.3f} s" for one in (seconds, compressed["parts_seconds"][part]))
        yield f"of a picture: {part}", *sides, "-"


def ratio(performance: Mapping[str, Any], key: str) -> str:
    """Compressed / baseline; with its spread where there are several turns."""
    if key in performance["ratios"]:
        spread = performance["ratios"][key]
        return f"x {spread['median']:.2f} ({spread['low']:.2f} to {spread['high']:.2f})"
    return f"x {performance['compressed'][key] / performance['baseline'][key]:.2f}"


def component_rows(report: Mapping[str, Any]) -> Iterable[tuple[str, ...]]:
    """Yields a header and one row for each component."""
    yield "component", "method", "baseline", "compressed", "ratio", "layers by precision"
    for name, part in report["components"].items():
        before, after = part["baseline_bytes"], part["compressed_bytes"]
        layers = ", ".join(f"{n} x {kind}" for kind, n in part["layers_by_precision"].items())
        sizes = (f"{before / 1e6:.1f} MB", f"{after / 1e6:.1f} MB", f"{after / before:.3f}")
        yield name, part["method"], *sizes, layers


def sqnr_rows(report: Mapping[str, Any]) -> Iterable[tuple[str, ...]]:
    """Yields a header and one row for each timestep; the floors are of the execution precision."""
    quality = report["quality"]
    columns = [
        quality[f"{what}_sqnr{kind}_db"] for what in ("unet", "latents") for kind in ("", "_floor")
    ]
    yield "timestep", "UNet output", "its floor", "latents", "their floor"
    for timestep in columns[0]:
        yield timestep, *(f"{one[timestep]:.1f} dB" if one else "-" for one in columns)


def stage_rows(report: Mapping[str, Any]) -> Iterable[tuple[str, ...]]:
    """What each stage took when it was built, in this run or in an earlier one."""
    yield "stage", "what", "time", "peak resident memory"
    for stage in report["stages"]:
        memory = f"{stage['peak_rss_bytes'] / 1e6:.0f} MB"
        yield stage["name"], stage["detail"], f"{stage['seconds']:.1f} s", memory


def environment_rows(report: Mapping[str, Any]) -> Iterable[tuple[str, ...]]:
    """Yields a header and one row for each fact."""
    environment = report["environment"]
    yield "what", "value"
    yield "processor", f"{environment['cpu']}, {environment['cores']} cores"
    yield "instruction sets", ", ".join(environment["instruction_sets"])
    yield "memory", f"{environment['memory_bytes'] / 1e9:.1f} GB"
    yield "system", f"{environment['system']}, Python {environment['python']}"
    for side, precisions in environment["execution_precisions"].items():
        executed = ", ".join(f"{part} {kind}" for part, kind in precisions.items())
        yield f"execution, {side}", f"{environment['device']}: {executed}"
    packages = ", ".join(f"{name} {number}" for name, number in environment["packages"].items())
    yield "packages", packages
