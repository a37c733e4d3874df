"""The report for reading: Markdown, the verdict first."""

from collections.abc import Iterable, Mapping
from typing import Any

_NAMES = {
    "load_seconds": ("load", "s", 2),
    "unet_step_seconds": ("UNet step", "ms", 1),
    "image_seconds": ("picture", "s", 2),
    "peak_rss_bytes": ("peak resident memory", "MB", 0),
    "peak_anonymous_bytes": ("peak anonymous memory", "MB", 0),
    "disk_bytes": ("size on disk", "MB", 1),
}
_SCALES = {"s": 1.0, "ms": 1e3, "MB": 1e-6}


def write_markdown(report: Mapping[str, Any]) -> str:
    """Turns a report document into Markdown."""
    recipe, model = report["recipe"], report["model"]
    parts = [
        f"# {recipe['name']}: {report['status']}",
        f"{recipe['description']}. Model `{model['id']}` at `{model['revision']}`.",
        *_section("Budgets", _budget_rows(report)),
        *_section("Quality", _quality_rows(report)),
        *_section("Time and memory", performance_rows(report)),
        *_section("Components", _component_rows(report)),
        *_section("UNet output error by timestep", _sqnr_rows(report)),
        "## Pictures",
        "![baseline above, compressed below, the least similar pairs first](grid.png)",
        *_section("Stages", _stage_rows(report)),
        *_section("Environment", _environment_rows(report)),
    ]
    return "\n\n".join(parts) + "\n"


def _section(title: str, rows: Iterable[tuple[str, ...]]) -> list[str]:
    header, *body = rows
    lines = [header, tuple("---" for _ in header), *body]
    return [f"## {title}", "\n".join("| " + " | ".join(row) + " |" for row in lines)]


def _budget_rows(report: Mapping[str, Any]) -> Iterable[tuple[str, ...]]:
    yield "budget", "limit", "measured", "verdict"
    for budget in report["budgets"]:
        side = "at most" if budget["kind"] == "max" else "at least"
        verdict = "passed" if budget["passed"] else "**failed**"
        limit = f"{side} {budget['limit']:g}"
        yield budget["name"], limit, f"{budget['value']:.4g}", verdict


def _quality_rows(report: Mapping[str, Any]) -> Iterable[tuple[str, ...]]:
    quality = report["quality"]
    clip, psnr, similarity = quality["clip_score"], quality["psnr_db"], quality["ssim"]
    low, high = clip["ci95"]
    yield "metric", "value", "note"
    yield "CLIP score, baseline", f"{clip['baseline']:.3f}", f"{clip['samples']} pictures"
    yield "CLIP score, compressed", f"{clip['compressed']:.3f}", f"scorer `{clip['scorer']}`"
    difference = f"{clip['difference']:+.3f}"
    yield "paired difference", difference, f"95 % interval {low:+.3f} to {high:+.3f}"
    yield "PSNR between the pairs", f"{psnr['mean']:.2f} dB", f"worst {psnr['min']:.2f} dB"
    yield "SSIM between the pairs", f"{similarity['mean']:.4f}", f"worst {similarity['min']:.4f}"


def performance_rows(report: Mapping[str, Any]) -> Iterable[tuple[str, ...]]:
    """Yields a header and one row for each figure: name, baseline, compressed, their ratio."""
    baseline, compressed = report["performance"]["baseline"], report["performance"]["compressed"]
    yield "figure", "baseline", "compressed", "compressed / baseline"
    for key, (name, unit, digits) in _NAMES.items():
        before, after = baseline[key] * _SCALES[unit], compressed[key] * _SCALES[unit]
        ratio = f"{after / before:.2f}" if before else "-"
        yield name, f"{before:.{digits}f} {unit}", f"{after:.{digits}f} {unit}", ratio


def _component_rows(report: Mapping[str, Any]) -> Iterable[tuple[str, ...]]:
    yield "component", "method", "baseline", "compressed", "ratio", "layers by precision"
    for name, part in report["components"].items():
        before, after = part["baseline_bytes"], part["compressed_bytes"]
        layers = ", ".join(f"{n} x {kind}" for kind, n in part["layers_by_precision"].items())
        sizes = (f"{before / 1e6:.1f} MB", f"{after / 1e6:.1f} MB", f"{after / before:.3f}")
        yield name, part["method"], *sizes, layers


def _sqnr_rows(report: Mapping[str, Any]) -> Iterable[tuple[str, ...]]:
    floor = report["quality"]["unet_sqnr_floor_db"]
    yield "timestep", "SQNR", "floor"
    for timestep, db in report["quality"]["unet_sqnr_db"].items():
        yield timestep, f"{db:.1f} dB", f"{floor[timestep]:.1f} dB" if floor else "-"


def _stage_rows(report: Mapping[str, Any]) -> Iterable[tuple[str, ...]]:
    """What each stage took when it was built, in this run or in an earlier one."""
    yield "stage", "what", "time", "peak resident memory"
    for stage in report["stages"]:
        memory = f"{stage['peak_rss_bytes'] / 1e6:.0f} MB"
        yield stage["name"], stage["detail"], f"{stage['seconds']:.1f} s", memory


def _environment_rows(report: Mapping[str, Any]) -> Iterable[tuple[str, ...]]:
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
