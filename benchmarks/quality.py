"""Ranks five ways to compress the demo by the report and by the checker: ``make bench``.

All candidates are judged on the same prompts, seeds and settings as the same baseline. The demo's
rule-based checker knows what a picture must show; the second table tells whether each metric of the
report orders the candidates as the checker does, where it tells them apart. Writes the comparison's
page and a picture of the same prompts by all of them beside the reports.
"""

import json
import platform
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sdcompress.errors import QualityGateFailed, QualityUndecided
from sdcompress.evaluate.statistics import mean_interval
from sdcompress.progress import TerminalProgress
from sdcompress.recipe import load_recipe
from sdcompress.report.comparison import compare
from sdcompress.report.comparison_page import render_comparison
from sdcompress.report.markdown import estimate, ratio
from sdcompress.shipped import shipped_folder
from sdcompress.workflow import quantize

OUTPUT = Path("build/quality")
CANDIDATES = {
    "int8_weights": ("weights_int8", ()),
    "hybrid": ("unet_hybrid", ()),
    "int8": ("unet_int8", ()),
    "int4_weights": (
        "weights_int8",
        ("compress.unet={method: int4_weights, convolutions: true}",),
    ),
    # No smoothing, symmetric activations, no layer spared, calibrated on one call.
    "bad": (
        "unet_int8",
        (
            "compress.unet={method: int8, preset: performance, smooth_quant_alpha: null}",
            "calibrate.prompts=1",
            "calibrate.samples=2",
        ),
    ),
}
COMMON = (
    "evaluate.prompt_set=demo_evaluation",
    "evaluate.prompts=256",
    "evaluate.seed=42",
    "evaluate.timed_images=5",
    "sampling={scheduler: dpmsolver++, steps: 25, guidance_scale: 5.0}",
    "budgets={clip_score_drop: 1.0}",
)
RANKING = ("clip_score", "clip_similarity", "ssim", "ms_ssim", "psnr_db", "cmmd")
SHOWN = 6  # prompts of the picture
_CELL, _LABEL, _GAP, _HEADER = 128, 100, 6, 62


def main() -> None:
    reports = {name: _report(name) for name in CANDIDATES}
    print(f"\n{platform.platform()}, {next(iter(reports.values()))['environment']['cpu']}\n")
    for row in _rows(reports):
        print("| " + " | ".join(row) + " |")
    _print_agreement(reports)
    folders = [OUTPUT / name for name in CANDIDATES]
    page = OUTPUT / "comparison.html"
    page.write_text(render_comparison(compare(folders)), encoding="utf-8")
    _picture(reports).save(OUTPUT / "pictures.png", optimize=True)
    print(f"\n{page}, {OUTPUT / 'pictures.png'}")


def _report(name: str) -> dict[str, Any]:
    recipe, overrides = CANDIDATES[name]
    file = shipped_folder("recipes") / f"{recipe}.yaml"
    chosen = load_recipe(file, (f"name={name}", *overrides, *COMMON))
    try:
        quantize(chosen, OUTPUT / name, progress=TerminalProgress())
    except (QualityGateFailed, QualityUndecided) as refusal:
        print(refusal)
    report: dict[str, Any] = json.loads((OUTPUT / name / "report/report.json").read_text("utf-8"))
    return report


def _rows(reports: dict[str, dict[str, Any]]) -> Iterator[list[str]]:
    """A header, and one row for each figure: of all candidates, then of the yardsticks."""
    first = next(iter(reports.values()))["quality"]
    yardsticks = first["yardsticks"]
    none = [""] * len(yardsticks)
    yield ["figure", *reports, *yardsticks.values()]
    yield ["---"] * (1 + len(reports) + len(yardsticks))
    yield ["verdict", *(one["status"] for one in reports.values()), *none]
    for metric in first["metrics"]:
        found = [_metric(report, metric["name"]) for report in reports.values()]
        yield [
            metric["title"],
            *(estimate(metric, one, interval=True) for one in found),
            *(estimate(metric, metric["yardsticks"][name]) for name in yardsticks),
        ]
    for key, title in (("unet_step_seconds", "time of a step"), ("image_seconds", "of a picture")):
        yield [title, *(ratio(one["performance"], key) for one in reports.values()), *none]
    parts = [report["components"]["unet"] for report in reports.values()]
    sizes = [f"x {part['compressed_bytes'] / part['baseline_bytes']:.3f}" for part in parts]
    yield ["UNet bytes", *sizes, *none]


def _metric(report: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in report["quality"]["metrics"] if one["name"] == name)
    return found


def _print_agreement(reports: dict[str, dict[str, Any]]) -> None:
    """Of the pairs of candidates that the checker tells apart, how many a metric orders alike.

    The checker tells two apart where the interval of the paired difference excludes 0, with 95 %
    confidence for all pairs together (Bonferroni).
    """
    right = {
        name: np.array([sample["scores"]["checker"]["compressed"] for sample in report["samples"]])
        for name, report in reports.items()
    }
    better, pairs = [], list(combinations(reports, 2))
    for one, other in pairs:
        found = mean_interval(right[one] - right[other], confidence=1 - 0.05 / len(pairs))
        if found.low > 0:
            better.append((one, other))
        elif found.high < 0:
            better.append((other, one))
    print(f"\nThe checker tells {len(better)} of {len(pairs)} pairs of candidates apart:")
    print("; ".join(f"{one} draws better than {other}" for one, other in better) + "\n")
    print("| metric | ranking, best first | as the checker says |")
    print("|---|---|---|")
    for name in ("checker", *RANKING):
        metrics = {one: _metric(report, name) for one, report in reports.items()}
        title, higher = metrics["bad"]["title"], metrics["bad"]["better"] == "higher"
        ranking = sorted(reports, key=lambda one: metrics[one]["value"], reverse=higher)
        same = sum(ranking.index(one) < ranking.index(other) for one, other in better)
        print(f"| {title} | {', '.join(ranking)} | {same} of {len(better)} |")


def _picture(reports: dict[str, dict[str, Any]]) -> Image.Image:
    """The prompts whose pictures the worst candidate changed most, by the baseline and by all."""
    worst = min(reports, key=lambda name: float(_metric(reports[name], "checker")["value"]))
    samples = reports[worst]["samples"]
    order = sorted(range(len(samples)), key=lambda index: float(samples[index]["likeness"]["ssim"]))
    rows = [("baseline", worst, "baseline")] + [(name, name, "compressed") for name in reports]
    size = (_LABEL + SHOWN * (_CELL + _GAP), _HEADER + len(rows) * (_CELL + _GAP))
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    small = ImageFont.load_default(11)
    for column, index in enumerate(order[:SHOWN]):
        place = (_LABEL + column * (_CELL + _GAP), 2)
        draw.multiline_text(place, fill(samples[index]["prompt"], 23), "black", small)
    for row, (label, name, side) in enumerate(rows):
        top = _HEADER + row * (_CELL + _GAP)
        draw.text((4, top + _CELL // 2), label, "black", ImageFont.load_default(14), anchor="lm")
        for column, index in enumerate(order[:SHOWN]):
            file = OUTPUT / name / "report" / reports[name]["samples"][index][side]
            with Image.open(file) as image:
                cell = image.convert("RGB").resize((_CELL, _CELL))
            canvas.paste(cell, (_LABEL + column * (_CELL + _GAP), top))
    return canvas


if __name__ == "__main__":
    main()
