"""Runs the demo recipes side by side and prints one Markdown table: ``make bench``.

Every figure is from the reports of these runs, on this machine; ratios are against the FP32
baseline measured in the same run.
"""

import json
import platform
from pathlib import Path

from sdcompress.errors import QualityGateFailed
from sdcompress.progress import TerminalProgress
from sdcompress.recipe import load_recipe
from sdcompress.shipped import shipped_folder
from sdcompress.workflow import quantize

RECIPES = ("weights_int8", "unet_hybrid", "unet_int8")
OUTPUT = Path("build/benchmarks")


def main() -> None:
    rows = [_row(name) for name in RECIPES]
    print(f"\n{platform.platform()}\n")
    print("| recipe | UNet bytes | CLIP difference (95 %) | SSIM | worst SQNR | step speed-up |")
    print("|---|---|---|---|---|---|")
    print("\n".join(rows))


def _row(name: str) -> str:
    recipe = load_recipe(shipped_folder("recipes") / f"{name}.yaml")
    output = OUTPUT / name
    try:
        quantize(recipe, output, fresh=False, progress=TerminalProgress())
    except QualityGateFailed as refusal:
        print(refusal)
    report = json.loads((output / "report/report.json").read_text(encoding="utf-8"))
    unet, quality = report["components"]["unet"], report["quality"]
    clip, steps = quality["clip_score"], report["performance"]
    size = unet["compressed_bytes"] / unet["baseline_bytes"]
    speed = steps["baseline"]["unet_step_seconds"] / steps["compressed"]["unet_step_seconds"]
    low, high = clip["ci95"]
    return (
        f"| {name} ({report['status']}) | x {size:.3f} | "
        f"{clip['difference']:+.3f} ({low:+.3f} to {high:+.3f}) | {quality['ssim']['mean']:.4f} | "
        f"{min(quality['unet_sqnr_db'].values()):.1f} dB | x {speed:.2f} |"
    )


if __name__ == "__main__":
    main()
