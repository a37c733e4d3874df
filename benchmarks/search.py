"""What a search finds, against hybrid and plain W8A8: ``make bench-search``.

Hybrid and W8A8 of the whole UNet are made and asked what the float32 one was asked on its way to
pictures of prompts that nothing was calibrated on. A budget a little above the better one's worst
timestep is what both fail; a search then looks for the quickest mixture that passes it. All are
timed in turn. Prints one Markdown table, and exits with 1 when what was found is not 1.15 times as
fast as hybrid. About half an hour on the demo; with ``--model FOLDER`` three hours for a full-size
model, whose pictures are not judged. A killed run goes on where it was.
"""

import argparse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from preflight import REDUCED

from calibration import by_step, traced
from sdcompress.calibrate import ModelInputs
from sdcompress.ir import IR_NAME
from sdcompress.line import Line, find_material
from sdcompress.methods import PLAIN, Hybrid, Int8, Method
from sdcompress.opening import production_line
from sdcompress.processor import describe_machine
from sdcompress.progress import TerminalProgress
from sdcompress.recipe import Recipe, load_recipe
from sdcompress.search.cost import measure_costs
from sdcompress.searching import search
from sdcompress.shipped import shipped_folder

Array = np.ndarray[Any, Any]
MARGIN_DB = 0.3
WANTED = 1.15
FULL_SIZE = (
    *REDUCED[:-1],
    "budgets={unet_bytes_ratio: 1.0}",
    "search={timesteps: 2, confirmed: 2, trajectory_steps: 4, candidates: 3, prompts: 2, "
    "variants: {w8a8: {method: int8}, weights8: {method: int8_weights}}}",
)
WHOLE: dict[str, Method] = {"hybrid": Hybrid(method="hybrid"), "W8A8": Int8(method="int8")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo", help="demo or a diffusers folder")
    parser.add_argument("--work", type=Path, default=Path("build/search"))
    options = parser.parse_args()
    name, prompts = "unet_int8", 4
    changes: tuple[str, ...] = ()
    if options.model != "demo":
        name, prompts = "sd21_base_int8", 1
        changes = (f"model={Path(options.model).resolve()}", *FULL_SIZE)
    shipped = shipped_folder("recipes") / f"{name}.yaml"
    recipe = load_recipe(shipped, changes)
    whole = _sqnr(recipe, WHOLE, options.work, prompts)
    limit = round(max(one.min() for one in whole.values()) + MARGIN_DB, 1)
    print(f"both fail where {limit} dB are asked for at every timestep", flush=True)
    strict = load_recipe(shipped, (*changes, f"budgets.unet_sqnr_min_db={limit}"))
    found = search(strict, options.work / "searched", progress=TerminalProgress())
    methods = WHOLE | {"found": found.chosen.method}
    sqnr = _sqnr(recipe, methods, options.work, prompts)
    seconds = _seconds(recipe, methods, options.work)
    print(f"{describe_machine()}; {prompts} prompts, {recipe.sampling.steps} steps\n")
    print("| UNet | a call | by 16 bits | by hybrid | SQNR, worst timestep | mean | budget |")
    print("|---|---|---|---|---|---|---|")
    for name, value in seconds.items():
        ratios = [f"x {value / seconds[one]:.2f}" for one in (PLAIN, "hybrid")]
        quality = ["", "", ""]
        if name in sqnr:
            least, mean = sqnr[name].min(), sqnr[name].mean()
            verdict = "kept" if least >= limit else "broken"
            quality = [f"{least:.1f} dB", f"{mean:.1f} dB", verdict]
        print(f"| {' | '.join([name, f'{value * 1e3:.1f} ms', *ratios, *quality])} |")
    raise SystemExit(seconds["hybrid"] / seconds["found"] < WANTED)


@contextmanager
def _line(recipe: Recipe, work: Path) -> Iterator[Line]:
    progress = TerminalProgress()
    material = find_material(recipe, progress)
    with production_line(recipe, work / "compared", material, progress) as line:
        yield line


def _sqnr(
    recipe: Recipe, methods: Mapping[str, Method], work: Path, prompts: int
) -> dict[str, Array]:
    """SQNR of each UNet's answers in dB at each step."""
    with _line(recipe, work) as line:
        traces = traced(line, prompts)
        return {
            name: by_step(line, line.compressed_by("unet", one).folder, traces)
            for name, one in methods.items()
        }


def _seconds(recipe: Recipe, methods: Mapping[str, Method], work: Path) -> dict[str, float]:
    """What a call with both branches takes, in 16 bits and by each method, in turn."""
    with _line(recipe, work) as line:
        models = {PLAIN: line.converted / "unet" / IR_NAME}
        for name, one in methods.items():
            models[name] = line.compressed_by("unet", one).folder / IR_NAME
        inputs = ModelInputs(line.calibrated, "unet", recipe.sampling.branches).at(0)
        shapes = {name: values.shape for name, values in inputs.items()}
        costs = measure_costs(models, (), shapes, recipe.device, lambda *_: None)
    return {name: cost.seconds for name, cost in costs.items()}


if __name__ == "__main__":
    main()
