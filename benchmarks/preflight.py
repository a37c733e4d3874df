"""Compares what preflight expects of a full-size run with what the run then takes.

``make bench-preflight`` runs a recipe, by default `sd21_base_int8`, with a reduced evaluation on
the model that benchmarks/compression.py made, and prints expected and measured time and memory of
each kind of stage, and the disk taken. About 40 minutes on two cores; stages that this code has
finished already count with what they took then, unless `--fresh`. Exits with 1 when an estimate is
off by more than a quarter.
"""

import argparse
import json
import os
import platform
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sdcompress.architecture import read_architecture
from sdcompress.demo import CLIP_DIR
from sdcompress.errors import QualityGateFailed, QualityUndecided
from sdcompress.opening import STORE
from sdcompress.preflight import estimate
from sdcompress.processor import processor_brand
from sdcompress.progress import TerminalProgress
from sdcompress.recipe import load_recipe
from sdcompress.shipped import shipped_folder
from sdcompress.source import locate
from sdcompress.speed import measure_speed
from sdcompress.workflow import quantize

REDUCED = (
    "sampling.steps=16",
    "calibrate.prompts=2",
    "calibrate.samples=64",
    "evaluate.prompts=2",
    "evaluate.yardstick_prompts=2",
    "evaluate.sqnr_prompts=1",
    "evaluate.timed_images=1",
    f"evaluate.scorer={CLIP_DIR.as_posix()}",
    # Pictures of seeded weights show nothing, so no score judges them.
    "budgets={unet_bytes_ratio: 0.55, step_speedup_min: 1.2}",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("build/benchmarks/sd21/model"))
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks/sd21_run"))
    parser.add_argument("--recipe", default="sd21_base_int8", help="a shipped one")
    parser.add_argument("--fresh", action="store_true", help="run it again")
    options = parser.parse_args()
    file = shipped_folder("recipes") / f"{options.recipe}.yaml"
    recipe = load_recipe(file, (f"model={options.model.resolve()}", *REDUCED))
    speed = measure_speed()
    expected = estimate(recipe, read_architecture(locate(recipe.model), None, None), speed)
    output = options.work.resolve() / options.recipe
    with suppress(QualityGateFailed, QualityUndecided):  # the report is what is wanted
        quantize(recipe, output, fresh=options.fresh, progress=TerminalProgress())
    report = json.loads((output / "report/report.json").read_text(encoding="utf-8"))
    print(
        f"\n{processor_brand()}, {os.cpu_count()} cores, {platform.platform()}; a convolution "
        f"makes {speed.f32 / 1e12:.2f} TMAC/s in f32, {speed.native / 1e12:.2f} by itself\n"
    )
    print("| stage | time, expected | measured | memory, expected | measured |")
    print("|---|---|---|---|---|")
    measured = _by_name(report["stages"])
    factors = {}
    for name, (seconds, peak) in _by_name(map(asdict, expected.stages)).items():
        real_seconds, real_peak = measured.pop(name)
        print(_row(name, seconds, peak, real_seconds, real_peak))
        factors[f"{name}, time"] = seconds / real_seconds
        factors[f"{name}, memory"] = peak / real_peak
    rest = sum(seconds for seconds, _ in measured.values())
    total = sum(stage["seconds"] for stage in report["stages"])
    peak = max(stage["peak_rss_bytes"] for stage in report["stages"])
    print(_row("**whole run**", expected.seconds, expected.peak_rss_bytes, total, peak))
    disk = sum(map(_size, _entries(options.work.resolve() / STORE, report))) + _size(output)
    print(f"\nDisk: expected {expected.disk_bytes / 1e9:.1f} GB, taken {disk / 1e9:.1f} GB "
          f"(x {expected.disk_bytes / disk:.2f}). Not estimated: "
          f"{', '.join(measured)}, {rest:.0f} s of the whole run.")  # fmt: skip
    factors |= {
        "whole run, time": expected.seconds / total,
        "whole run, memory": expected.peak_rss_bytes / peak,
        "disk": expected.disk_bytes / disk,
    }
    far = [f"{name} x {one:.2f}" for name, one in factors.items() if not 0.75 <= one <= 1.25]
    print(f"Off by more than a quarter: {', '.join(far) or 'nothing'}.")
    raise SystemExit(1 if far else 0)


def _by_name(stages: Iterable[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Sums the seconds of a kind of stage, and takes the highest memory."""
    grouped: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for stage in stages:
        grouped[stage["name"]].append(stage)
    return {
        name: (sum(one["seconds"] for one in found), max(one["peak_rss_bytes"] for one in found))
        for name, found in grouped.items()
    }


def _row(name: str, seconds: float, peak: float, real_seconds: float, real_peak: float) -> str:
    return (
        f"| {name} | {seconds:.0f} s | {real_seconds:.0f} s (x {seconds / real_seconds:.2f}) | "
        f"{peak / 1e9:.2f} GB | {real_peak / 1e9:.2f} GB (x {peak / real_peak:.2f}) |"
    )


def _entries(store: Path, report: dict[str, Any]) -> set[Path]:
    """What of the store belongs to this run; earlier ones, of other code, may have left theirs."""
    records = ((file.parent, json.loads(file.read_text())) for file in store.glob("*/*stage.json"))
    return {folder for folder, record in records if record in report["stages"]}


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


if __name__ == "__main__":
    main()
