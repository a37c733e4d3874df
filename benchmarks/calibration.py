"""What better calibration gains: ``make bench-calibration``.

The UNet is quantized once with each option and asked what the float32 one was asked on its own way
to pictures of prompts that nothing was calibrated on. Prints SQNR of its answers in dB, over all
calls and at both ends of the trajectory, as one Markdown table. About fifteen minutes on the demo;
with ``--model FOLDER --steps 8 --prompts 1`` the same for a full-size model, without what NNCF
collects itself, which takes 16 GB there.
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sdcompress.bundle import assemble
from sdcompress.evaluate.pictures import BASELINE_PRECISION, Shot, Variant
from sdcompress.evaluate.sqnr import Trajectory, trace, unet_sqnr
from sdcompress.line import Line, find_material
from sdcompress.methods import COMPONENTS
from sdcompress.opening import production_line
from sdcompress.processor import describe_machine
from sdcompress.progress import TerminalProgress
from sdcompress.prompts import load_prompts
from sdcompress.recipe import Recipe, load_recipe
from sdcompress.shipped import shipped_folder
from sdcompress.splitting import FIRST

OUTPUT = Path("build/calibration/run")
ENDS = [".*conv_in.*", ".*conv_out.*"]
TEXT = r".*attn2\.to_[kv].*"


@dataclass(frozen=True)
class Trial:
    """What differs from the first row."""

    name: str
    unet: dict[str, Any]
    convert: dict[str, bool] | None = None
    by_nncf: bool = False


def _w8a8(**options: Any) -> dict[str, Any]:
    ignored = options.pop("ignored", ENDS)
    return {"method": "int8", "ignored": {"patterns": ignored}, **options}


TRIALS = (
    Trial("as `unet_int8` and `sd21_base_int8` do it", _w8a8()),
    Trial("both ends of the UNet in 8 bits, too", _w8a8(ignored=[])),
    Trial("SmoothQuant 0.8", _w8a8(smooth_quant_alpha=0.8)),
    Trial("SmoothQuant 0.5", _w8a8(smooth_quant_alpha=0.5)),
    Trial("no SmoothQuant", _w8a8(smooth_quant_alpha=None)),
    Trial("symmetric activations", _w8a8(preset="performance")),
    Trial("no bias correction", _w8a8(bias_correction="none")),
    Trial("ranges: median", _w8a8(ranges="median")),
    Trial("ranges: widest", _w8a8(ranges="widest")),
    Trial("ranges: narrowest_step", _w8a8(ranges="narrowest_step")),
    Trial("ranges: percentile", _w8a8(ranges="percentile"), by_nncf=True),
    Trial("ranges: mse", _w8a8(ranges="mse"), by_nncf=True),
    Trial("text keys and values in 16 bits", _w8a8(ignored=[*ENDS, TEXT])),
    Trial("text's first token apart, in 16 bits",
          _w8a8(ignored=[*ENDS, f".*{FIRST}"]), {"split_first_token": True}),
    Trial("skip connections apart", _w8a8(), {"split_skips": True}),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo", help="demo or a diffusers folder")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--only", action="append", help="a row, or all that contain this")
    options = parser.parse_args()
    recipe = _recipe(options.model, options.steps)
    chosen = [
        one
        for one in TRIALS
        if (not options.only or any(text in one.name for text in options.only))
        and (options.model == "demo" or not one.by_nncf)
    ]
    print(f"{describe_machine()}; {options.prompts} prompts, {options.steps} steps\n")
    print("| option | all calls | the first | the last |")
    print("|---|---|---|---|")
    for row in _rows(recipe, chosen, options.prompts):
        print(f"| {' | '.join(row)} |", flush=True)


def _recipe(model: str, steps: int) -> Recipe:
    name = "unet_int8" if model == "demo" else "sd21_base_int8"
    return load_recipe(
        shipped_folder("recipes") / f"{name}.yaml",
        (f"sampling.steps={steps}", f"model={model}")
        + (() if model == "demo" else ("calibrate.prompts=8", "calibrate.samples=64")),
    )


def _rows(recipe: Recipe, trials: Sequence[Trial], prompts: int) -> Iterator[list[str]]:
    progress = TerminalProgress()
    traces: list[Trajectory] = []
    for trial in trials:
        changed = _changed(recipe, trial)
        material = find_material(changed, progress)
        with production_line(changed, OUTPUT, material, progress) as line:
            traces = traces or traced(line, prompts)
            unet = line.compressed_by("unet", changed.compress.unet).folder
            figures = by_step(line, unet, traces)
            ends = (figures.mean(), figures[0], figures[-1])
            yield [trial.name, *(f"{value:.1f} dB" for value in ends)]


def _changed(recipe: Recipe, trial: Trial) -> Recipe:
    if trial.convert:
        recipe = recipe.model_copy(
            update={"convert": recipe.convert.model_copy(update=trial.convert)}
        )
    method = type(recipe.compress.unet).model_validate(trial.unet)
    return recipe.with_unet(method)


def traced(line: Line, prompts: int) -> list[Trajectory]:
    """The float32 model's own calls, on prompts of the evaluation."""
    chosen = line.recipe.evaluate
    pipeline = Variant(line.converted, "CPU", BASELINE_PRECISION, line.settings).open()
    shots = (
        Shot(replace(prompt, negative=chosen.negative_prompt), chosen.seed + index)
        for index, prompt in enumerate(load_prompts(chosen.prompt_set, prompts, chosen.seed))
    )
    return [trace(pipeline, shot, line.settings) for shot in shots]


def by_step(line: Line, unet: Path, traces: list[Trajectory]) -> np.ndarray[Any, Any]:
    """SQNR in dB of a UNet's answers at each step, the mean over the trajectories."""
    parts = {component: line.converted / component for component in COMPONENTS}
    with tempfile.TemporaryDirectory(dir=line.store.scratch) as scratch:
        folder = Path(scratch) / "candidate"
        assemble(line.converted, parts | {"unet": unet}, folder)
        pipeline = Variant(folder, "CPU", None, line.settings).open()
        found = [list(unet_sqnr(pipeline, one.calls).values()) for one in traces]
    return np.array(np.mean(found, axis=0))


if __name__ == "__main__":
    main()
