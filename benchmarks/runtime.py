"""A full-size picture from this runtime and from its peers: ``make bench-runtime``.

Each runtime draws one picture of 512 x 512 in 20 steps with guidance 7.5, from process start to the
PNG on disk, in processes of their own that take turns. The peers draw with DDIM, because
openvino-genai has no DPM-Solver++; it asks the UNet as often. Prints one Markdown table with
medians, the spread of the turns, and ratios to the first contender. About 20 minutes a turn on two
cores.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from sdcompress.interchange import write_peer_scheduler
from sdcompress.memory import MemoryWatch
from sdcompress.processor import describe_machine

PROMPT = "a photo of an astronaut riding a horse on mars"
NEGATIVE = "low resolution, blurry"
STEPS, GUIDANCE, SIZE, SEED = 20, 7.5, 512, 42
Figures = dict[str, float]


@dataclass(frozen=True)
class Contender:
    """A runtime, which of the models it draws with, and what it is told."""

    name: str
    runtime: str
    model: str
    options: tuple[str, ...] = ()


CONTENDERS = (
    Contender("openvino-genai, 16-bit", "genai", "wide"),
    Contender("openvino-genai, W8A8", "genai", "bundle"),
    Contender("optimum-intel, 16-bit", "optimum", "wide"),
    Contender("optimum-intel, W8A8", "optimum", "bundle"),
    Contender("sdcompress, 16-bit", "ours", "wide"),
    Contender("sdcompress, W8A8", "ours", "bundle"),
    Contender("sdcompress, W8A8, all parts loaded", "ours", "bundle", ("keep_loaded=true",)),
    Contender("sdcompress, W8A8, branches in one batch", "ours", "bundle",
              ("branches=in one batch",)),
    Contender("sdcompress, W8A8, branches in turn", "ours", "bundle", ("branches=in turn",)),
    Contender("sdcompress, W8A8, UNet not compiled ahead", "ours", "bundle", ("ahead=false",)),
    Contender("sdcompress, W8A8, tiles of 32", "ours", "bundle", ("vae_tile=32",)),
    Contender("sdcompress, W8A8, guided 60 %", "ours", "bundle", ("guidance_end=0.6",)),
    Contender("sdcompress, W8A8, attention thinned", "ours", "bundle", ("attention_stride=2",)),
    Contender("sdcompress, W8A8, cache of 2", "ours", "bundle", ("cache_interval=2",)),
    Contender("sdcompress, W8A8, cache of 3", "ours", "bundle", ("cache_interval=3",)),
    Contender("sdcompress, W8A8, cache of 3, attention thinned", "ours", "bundle",
              ("cache_interval=3", "attention_stride=2")),
    Contender("openvino-genai, W8A8 with VAE", "genai", "fast"),
    Contender("sdcompress, W8A8 with VAE", "ours", "fast"),
    Contender("sdcompress, W8A8 with VAE, cache of 3, attention thinned", "ours", "fast",
              ("cache_interval=3", "attention_stride=2")),
    Contender("sdcompress, as `sd21_base_fast` draws", "ours", "fast",
              ("cache_interval=3", "guidance_end=0.6", "attention_stride=2")),
    Contender("sdcompress, the same with a tiny decoder", "ours", "fast",
              ("cache_interval=3", "guidance_end=0.6", "attention_stride=2", "decoder=tiny")),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path,
                        default=Path("build/benchmarks/sd21_run/sd21_base_int8"))  # fmt: skip
    parser.add_argument("--wide", type=Path, help="the bundle's model in 16-bit OpenVINO IR")
    parser.add_argument(
        "--fast", type=Path, help="one with a W8A8 VAE decoder, best with a tiny one as well"
    )
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--only", action="append", help="a contender, or all that contain this")
    parser.add_argument("--child", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        runtime, folder, *rest = options.child
        print(json.dumps(_CHILDREN[runtime](Path(folder), rest)))
        return
    bundle = options.bundle.resolve()
    wide = options.wide.resolve() if options.wide else converted(bundle)
    models = {"wide": wide, "bundle": bundle}
    if options.fast:
        models["fast"] = options.fast.resolve()
    chosen = [
        one
        for one in CONTENDERS
        if one.model in models
        and ("decoder=tiny" not in one.options or (models[one.model] / "tiny_decoder").is_dir())
        and (not options.only or any(_is_asked(one.name, asked) for asked in options.only))
    ]
    with tempfile.TemporaryDirectory(dir=bundle.parent) as scratch:
        folders = {
            name: _for_peers(folder, Path(scratch) / name) for name, folder in models.items()
        }
        seen: dict[Contender, list[Figures]] = {one: [] for one in chosen}
        for _ in range(options.turns):
            for one in chosen:
                seen[one].append(_turn(one, folders[one.model], Path(scratch)))
                print(f"{one.name}: {seen[one][-1]}", file=sys.stderr, flush=True)
    _print(seen)


def _is_asked(name: str, asked: str) -> bool:
    """A whole name asks for that contender, any other text for all that contain it."""
    whole = any(asked == one.name for one in CONTENDERS)
    return asked == name if whole else asked in name


def converted(bundle: Path) -> Path:
    """The 16-bit IR that the run which made the bundle left in its store."""
    found = [*(bundle.parent / ".sdcompress").glob("convert-*")]
    if len(found) != 1:
        raise SystemExit(f"{len(found)} converted models beside {bundle}: name one with --wide")
    return found[0]


def _for_peers(folder: Path, copy: Path) -> Path:
    """The folder, its large files linked, with a scheduler that all runtimes have."""
    shutil.copytree(folder, copy, copy_function=_link_weights)
    write_peer_scheduler(copy, "ddim")
    return copy


def _link_weights(source: str, target: str) -> None:
    if source.endswith(".bin"):
        os.link(source, target)
    else:
        shutil.copyfile(source, target)


def _turn(one: Contender, folder: Path, scratch: Path) -> Figures:
    """One picture in a process of its own, from its start to its end."""
    command = [sys.executable, __file__, "--child", one.runtime, str(folder), *one.options]
    started = time.time()
    child = subprocess.Popen(command, cwd=scratch, stdout=subprocess.PIPE, text=True)
    watch = MemoryWatch()
    with watch.over(child.pid):
        output, _ = child.communicate()
    if child.returncode:
        raise SystemExit(f"{one.name} failed")
    figures: Figures = json.loads(output.splitlines()[-1])
    return {
        "total_seconds": figures["written_at"] - started,
        "step_seconds": figures["step_seconds"],
        "peak_rss_bytes": watch.peak_rss_bytes,
        "peak_anonymous_bytes": watch.peak_anonymous_bytes,
    }


def _ours(folder: Path, options: list[str]) -> Figures:
    from sdcompress.runtime import (
        Economy,
        Job,
        Pipeline,
        Settings,
        draw_in_phases,
        save_png,
        stream,
    )

    ticks: list[float] = []

    def tick(_: object) -> None:
        ticks.append(time.time())

    pairs = (one.partition("=") for one in options)
    told: dict[str, Any] = {name: yaml.safe_load(value) for name, _, value in pairs}
    draw = stream if told.pop("keep_loaded", False) else draw_in_phases
    given = {name: told.pop(name) for name in ("branches", "vae_tile", "ahead") if name in told}
    economy = Economy(**given)
    pipeline = Pipeline.load(folder, verify="never", economy=economy)
    settings = Settings(STEPS, GUIDANCE, "dpmsolver++", SIZE, SIZE, **told)
    jobs = [Job(PROMPT, NEGATIVE, SEED)]
    for _, image in draw(pipeline, jobs, settings, on_step=tick):
        save_png(image, Path("ours.png"), {})
    return _figures(ticks)


def _genai(folder: Path, _: list[str]) -> Figures:
    import openvino_genai as genai
    from PIL import Image

    pipeline = genai.Text2ImagePipeline(folder, "CPU")
    ticks: list[float] = []

    def tick(*_: Any) -> bool:
        ticks.append(time.time())
        return False

    drawn = pipeline.generate(
        PROMPT, negative_prompt=NEGATIVE, width=SIZE, height=SIZE, num_inference_steps=STEPS,
        guidance_scale=GUIDANCE, rng_seed=SEED, callback=tick,
    )  # fmt: skip
    Image.fromarray(drawn.data[0]).save("genai.png")
    return _figures(ticks)


def _optimum(folder: Path, _: list[str]) -> Figures:
    import torch
    from optimum.intel import OVStableDiffusionPipeline

    pipeline = OVStableDiffusionPipeline.from_pretrained(folder, ov_config={"CACHE_DIR": ""})
    pipeline.set_progress_bar_config(disable=True)
    ticks: list[float] = []

    def tick(_pipeline: Any, _step: int, _timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        ticks.append(time.time())
        return values

    drawn = pipeline(
        PROMPT, negative_prompt=NEGATIVE, width=SIZE, height=SIZE, num_inference_steps=STEPS,
        guidance_scale=GUIDANCE, generator=torch.Generator().manual_seed(SEED),
        callback_on_step_end=tick,
    )  # fmt: skip
    drawn.images[0].save("optimum.png")
    return _figures(ticks)


def _figures(ticks: list[float]) -> Figures:
    steps = [after - before for before, after in pairwise(ticks)]
    return {
        "written_at": time.time(),
        # Shortcuts make steps unlike each other; the first, a whole one, is not among them.
        "step_seconds": statistics.fmean(steps),
    }


_CHILDREN: dict[str, Callable[[Path, list[str]], Figures]] = {
    "ours": _ours,
    "genai": _genai,
    "optimum": _optimum,
}


def _print(seen: dict[Contender, list[Figures]]) -> None:
    print(f"\n{describe_machine()}; {len(next(iter(seen.values())))} turns\n")
    print("| runtime, UNet | a step | start to picture | ratio | peak RSS | ratio | anonymous |")
    print("|---|---|---|---|---|---|---|")
    first = next(iter(seen.values()))
    for one, turns in seen.items():
        print("| " + " | ".join([one.name, *_cells(turns, first)]) + " |")


def _cells(turns: list[Figures], first: list[Figures]) -> Iterator[str]:
    def column(key: str, of: list[Figures] = turns) -> list[float]:
        return [figures[key] for figures in of]

    def ratio(key: str) -> str:
        pairs = [a / b for a, b in zip(column(key), column(key, first), strict=True)]
        return f"x {statistics.median(pairs):.2f} ({min(pairs):.2f} to {max(pairs):.2f})"

    yield f"{statistics.median(column('step_seconds')):.2f} s"
    yield f"{statistics.median(column('total_seconds')):.1f} s"
    yield ratio("total_seconds")
    yield f"{statistics.median(column('peak_rss_bytes')) / 1e9:.2f} GB"
    yield ratio("peak_rss_bytes")
    yield f"{statistics.median(column('peak_anonymous_bytes')) / 1e9:.2f} GB"


if __name__ == "__main__":
    main()
