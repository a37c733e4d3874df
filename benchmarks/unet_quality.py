"""UNets of one model held against its float32 one: what calibration.py and search.py share."""

import gc
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from preflight import REDUCED

from sdcompress.bundle import assemble
from sdcompress.calibrate import ModelInputs
from sdcompress.evaluate.pictures import BASELINE_PRECISION, Variant
from sdcompress.evaluate.sqnr import Trajectory, trace, unet_sqnr
from sdcompress.ir import IR_NAME
from sdcompress.line import Line, find_material
from sdcompress.methods import COMPONENTS
from sdcompress.opening import production_line
from sdcompress.progress import TerminalProgress
from sdcompress.prompts import load_prompts
from sdcompress.recipe import Recipe, load_recipe
from sdcompress.search.cost import measure_costs
from sdcompress.shipped import shipped_folder
from sdcompress.trial import shots_of

Array = np.ndarray[Any, Any]
TURNS = 3


def recipe_for(model: str, changes: tuple[str, ...] = ()) -> Recipe:
    """What the demo is compressed by, or a full-size model, there with a reduced evaluation."""
    if model == "demo":
        return load_recipe(shipped_folder("recipes") / "unet_int8.yaml", changes)
    file = shipped_folder("recipes") / "sd21_base_int8.yaml"
    return load_recipe(file, (f"model={Path(model).resolve()}", *REDUCED, *changes))


@contextmanager
def opened_line(recipe: Recipe, work: Path) -> Iterator[Line]:
    """The recipe's line on the store in `work`."""
    progress = TerminalProgress()
    material = find_material(recipe, progress)
    with production_line(recipe, work.resolve() / "compared", material, progress) as line:
        yield line


def traced(line: Line) -> list[Trajectory]:
    """The float32 model's own calls on the prompts that SQNR is measured on."""
    chosen = line.recipe.evaluate
    device = line.recipe.device
    pipeline = Variant(line.converted, device, BASELINE_PRECISION, line.settings).open()
    prompts = load_prompts(chosen.prompt_set, chosen.sqnr_prompts, chosen.seed)
    return [trace(pipeline, shot, line.settings) for shot in shots_of(prompts, chosen)]


def sqnr_by_step(line: Line, unet: Path, traces: list[Trajectory]) -> Array:
    """SQNR in dB of a UNet's answers at each step, the mean over the trajectories."""
    parts = {component: line.converted / component for component in COMPONENTS}
    with tempfile.TemporaryDirectory(dir=line.store.scratch) as scratch:
        folder = Path(scratch) / "candidate"
        assemble(line.converted, parts | {"unet": unet}, folder)
        device, precision = line.recipe.device, line.recipe.execution_precision
        pipeline = Variant(folder, device, precision, line.settings).open()
        found = [list(unet_sqnr(pipeline, one.calls).values()) for one in traces]
        del pipeline
        gc.collect()  # unmaps the files, which Windows cannot delete while they are open
    return np.array(np.mean(found, axis=0))


def call_seconds(
    line: Line, unets: Mapping[str, Path], turns: int = TURNS
) -> dict[str, list[float]]:
    """What a call with both branches takes, of each UNet in so many turns."""
    inputs = ModelInputs(line.calibrated, "unet", line.recipe.sampling.branches).at(0)
    shapes = {name: values.shape for name, values in inputs.items()}
    models = {name: folder / IR_NAME for name, folder in unets.items()}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    device, precision = line.recipe.device, line.recipe.execution_precision
    for _ in range(turns):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            costs = measure_costs(models, (), shapes, device, precision, folder, lambda *_: None)
        for name, found in seconds.items():
            found.append(costs[name].seconds)
    return seconds


def ratio(seconds: Mapping[str, list[float]], name: str, by: str) -> Array:
    """The median of the turns' ratios, the least and the largest."""
    found = np.divide(seconds[name], seconds[by])
    return np.array([np.median(found), found.min(), found.max()])


def as_ratio(found: Array) -> str:
    """Such a ratio in words."""
    return f"x {found[0]:.2f} ({found[1]:.2f} to {found[2]:.2f})"
