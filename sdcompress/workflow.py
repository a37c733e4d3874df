"""Runs the stages in order, recipe -> source -> ... -> report -> bundle, and decides little.

Each stage is looked up in the store by the hash of its inputs and built only when it is not there,
so a second run, or one after a kill, goes on where the last one stopped.
"""

import gc
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from sdcompress.bundle import REPORT, assemble, publish, seal
from sdcompress.compress import CompressedIR
from sdcompress.convert import convert as convert_model
from sdcompress.errors import InputError
from sdcompress.evaluate.records import ComponentSize
from sdcompress.identity import BASELINE, COMPRESSED
from sdcompress.ir import ir_bytes
from sdcompress.judging import find_judging
from sdcompress.line import find_material, run_apart
from sdcompress.opening import look_ahead, output_folder, production_line
from sdcompress.preflight import STAGES
from sdcompress.progress import Progress, SilentProgress
from sdcompress.recipe import Convert, Recipe
from sdcompress.source import locate
from sdcompress.tiny_decoder import convert_tiny_decoder, locate_tiny_decoder
from sdcompress.trial import Trial
from sdcompress.verdict import Run, quality_summary, reach_verdict, require_passed


def quantize(
    recipe: Recipe,
    output: Path | str | None = None,
    *,
    fresh: bool = False,
    ignore_preflight: bool = False,
    progress: Progress | None = None,
) -> Run:
    """Converts, calibrates, compresses, evaluates, reports and, if the gate agrees, bundles.

    `output` defaults to build/<recipe name>; finished stages are kept in .sdcompress beside it.
    `fresh` builds every stage anew. Raises PreflightError when a large model's run would not fit in
    memory or on disk, unless `ignore_preflight`, QualityGateFailed when a budget is broken and
    QualityUndecided when too few pictures were drawn to tell; `output` then holds the report and
    nothing that could be taken for a bundle.
    """
    target = output_folder(recipe, output)
    shown = progress or SilentProgress()
    material = find_material(recipe, shown)
    judging = find_judging(recipe, material.calibration_prompts)
    with production_line(recipe, target, material, shown, fresh=fresh) as line:
        result = line.store.scratch / "result"
        trial = Trial(recipe, line.store, shown, line.run, judging, line.keys())
        wanted = set(STAGES) - line.finished() - trial.finished()
        look_ahead(line, target, wanted, refuse=not ignore_preflight)
        tiny = line.tiny_decoder
        compressed = line.compressed()
        parts = {component: ir.folder for component, ir in compressed.items()}
        assemble(line.converted, parts, result, tiny_decoder=tiny)
        sizes = _sizes(line.converted, compressed)
        folders = {BASELINE: line.converted, COMPRESSED: result}
        trial = replace(trial, keys=line.keys())
        run = reach_verdict(trial, folders, sizes, line.model_record(), result, target)
        with shown.stage("bundle", str(output or target)) as advance:
            if run.passed:
                quality = quality_summary(run.evaluation)
                seal(result, recipe.as_dict(), line.model_record(), quality)
            else:
                _keep_only_report(result)
            publish(result, target)
            advance(1, 1)
    require_passed(run)
    return run


def calibrate(
    recipe: Recipe,
    output: Path | str | None = None,
    *,
    fresh: bool = False,
    ignore_preflight: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Records a recipe's calibration inputs and returns their folder, in the store of `output`.

    Runs of the same recipe find them there. Raises InputError when no method needs them, and
    PreflightError as `quantize` does.
    """
    if not recipe.compress.needs_calibration:
        raise InputError(f"recipe {recipe.name}: none of its methods is calibrated")
    target = output_folder(recipe, output)
    shown = progress or SilentProgress()
    # Inputs are recorded in float32, whatever is executed in later.
    material = find_material(recipe.model_copy(update={"execution_precision": None}), shown)
    with production_line(recipe, target, material, shown, fresh=fresh) as line:
        wanted = {"convert", "calibrate"} - line.finished()
        look_ahead(line, target, wanted, refuse=not ignore_preflight)
        return line.calibrated


def convert(
    model: str,
    output: Path | str,
    *,
    revision: str | None = None,
    variant: str | None = None,
    config: str | None = None,
    loras: Sequence[tuple[str, float]] = (),
    progress: Progress | None = None,
    **options: str | int | None,
) -> Path:
    """Writes a model's FP IR to the folder `output`, which must be new or empty.

    `options` are those of the recipe's `convert` section: weights, tiny_decoder, batch, height and
    width.
    """
    chosen = Convert.of(options, "cannot convert so")
    target = Path(output).resolve()
    if target.exists() and (target.is_file() or any(target.iterdir())):
        raise InputError(f"{target} is not empty; choose a new folder")
    shown = progress or SilentProgress()
    source = locate(model, revision, variant, shown, config=config, loras=loras)
    tiny = locate_tiny_decoder(chosen.tiny_decoder, source) if chosen.tiny_decoder else None
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        finished = Path(scratch) / "result"
        with shown.stage("convert", f"{source.id} to OpenVINO IR") as advance:
            run = partial(run_apart, source.weight_bytes, on_progress=advance)
            if tiny:  # first, for it is quick: what is wrong with it is told soon
                run(convert_tiny_decoder, tiny, finished, chosen.weights == "stored")
            run(convert_model, source, chosen, finished)
        gc.collect()  # unmaps IR files, which Windows cannot move while they are open
        publish(finished, target)
    return target


def _sizes(baseline: Path, compressed: Mapping[str, CompressedIR]) -> dict[str, ComponentSize]:
    return {
        component: ComponentSize(
            ir.method, ir_bytes(baseline / component), ir.bytes, ir.layers_by_precision
        )
        for component, ir in compressed.items()
    }


def _keep_only_report(result: Path) -> None:
    for path in result.iterdir():
        if path.name == REPORT:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
