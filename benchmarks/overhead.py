"""What the runtimes cost beside the network: ``make bench-overhead [BUNDLE=...]``.

Each runtime draws from the same folder, with DDIM, which all have, in processes of their own that
take turns. Import time, the time from process start to the first picture, and seconds a step, as
the difference of a long and a short run. For this runtime also what a step spends outside
OpenVINO's inference. Prints one Markdown table; the best of the turns counts.
"""

import argparse
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import openvino as ov

from sdcompress.interchange import write_peer_scheduler

PROMPT = "a small red circle above a large blue square"
SHORT, LONG = 5, 30
RUNTIMES = {
    "sdcompress": "from sdcompress.runtime import Pipeline; Pipeline.load",
    "openvino-genai": "import openvino_genai; openvino_genai.Text2ImagePipeline",
    "optimum-intel": "from optimum.intel import OVStableDiffusionPipeline",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--runtime", choices=RUNTIMES, help="in a child process")
    parser.add_argument("--only", choices=RUNTIMES, action="append")
    options = parser.parse_args()
    if options.runtime:
        print(json.dumps(_measure(options.runtime, options.bundle, options.size)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.bundle
        if (folder / "manifest.json").exists():
            folder = Path(shutil.copytree(folder, Path(scratch) / "bundle"))
            write_peer_scheduler(folder, "ddim")
        _compare(folder, options.size, options.turns, options.only or list(RUNTIMES))


def _compare(folder: Path, size: int, turns: int, runtimes: list[str]) -> None:
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in runtimes}
    for _ in range(turns):
        for name in runtimes:
            started = time.perf_counter()
            command = [sys.executable, "-c", RUNTIMES[name]]
            subprocess.run(command, check=True, capture_output=True)
            imported = time.perf_counter() - started
            seen[name].append(_child(name, folder, size) | {"import_seconds": imported})
    print(f"\n{ov.Core().get_property('CPU', 'FULL_DEVICE_NAME')}, {platform.platform()}\n")
    print("| runtime | import | process start to first picture | a step | outside inference |")
    print("|---|---|---|---|---|")
    for name, measured in seen.items():
        best = {key: min(one[key] for one in measured) for key in measured[0]}
        outside = best.get("outside_seconds")
        share = f"{outside * 1e6:.0f} us, {outside / best['step_seconds']:.2%}" if outside else "-"
        print(
            f"| {name} | {best['import_seconds']:.2f} s | {best['first_seconds']:.2f} s "
            f"| {best['step_seconds'] * 1e3:.2f} ms | {share} |"
        )


def _child(name: str, folder: Path, size: int) -> dict[str, float]:
    started = time.time()
    command = [sys.executable, __file__, str(folder), "--runtime", name, "--size", str(size)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    figures["first_seconds"] = figures.pop("first_at") - started
    return figures


def _measure(name: str, folder: Path, size: int) -> dict[str, float]:
    draw, outside = {
        "sdcompress": _ours,
        "openvino-genai": _genai,
        "optimum-intel": _optimum,
    }[name](folder, size)
    draw(SHORT)
    figures = {"first_at": time.time()}
    short, long = (min(_timed(draw, steps) for _ in range(3)) for steps in (SHORT, LONG))
    figures["step_seconds"] = (long - short) / (LONG - SHORT)
    return figures | ({"outside_seconds": outside()} if outside else {})


def _timed(draw: Any, steps: int) -> float:
    started = time.perf_counter()
    draw(steps)
    return time.perf_counter() - started


def _ours(folder: Path, size: int) -> Any:
    from sdcompress.runtime import Job, Pipeline, Settings
    from sdcompress.runtime.components import Component

    pipeline = Pipeline.load(folder, verify="never")

    def draw(steps: int) -> None:
        pipeline.generate(PROMPT, settings=_settings(steps))

    def _settings(steps: int) -> Settings:
        return Settings(steps=steps, guidance_scale=5.0, scheduler="ddim", width=size, height=size)

    def outside() -> float:
        """Seconds a step of the denoising loop that are not spent in OpenVINO's inference."""
        inside = [0.0]
        plain = Component.infer_side_by_side

        def watched(component: Component, runs: Any) -> Any:
            started = time.perf_counter()
            found = plain(component, runs)
            inside[0] += time.perf_counter() - started
            return found

        setattr(Component, "infer_side_by_side", watched)  # noqa: B010  # for mypy it is a method
        text = pipeline.encode([PROMPT, ""])
        start = pipeline.begin(Job(PROMPT), _settings(LONG))
        shares = []
        for _ in range(3):
            inside[0] = 0.0
            started = time.perf_counter()
            pipeline.denoise(start, text[:1], text[1:], _settings(LONG))
            shares.append(time.perf_counter() - started - inside[0])
        setattr(Component, "infer_side_by_side", plain)  # noqa: B010
        return min(shares) / LONG

    return draw, outside


def _genai(folder: Path, size: int) -> Any:
    import openvino_genai as genai

    pipeline = genai.Text2ImagePipeline(folder, "CPU")

    def draw(steps: int) -> None:
        pipeline.generate(
            PROMPT, width=size, height=size, num_inference_steps=steps, guidance_scale=5.0
        )

    return draw, None


def _optimum(folder: Path, size: int) -> Any:
    from optimum.intel import OVStableDiffusionPipeline

    pipeline = OVStableDiffusionPipeline.from_pretrained(folder, ov_config={"CACHE_DIR": ""})
    pipeline.set_progress_bar_config(disable=True)

    def draw(steps: int) -> None:
        pipeline(PROMPT, width=size, height=size, num_inference_steps=steps, guidance_scale=5.0)

    return draw, None


if __name__ == "__main__":
    main()
