"""Runs the stages in order, recipe -> source -> ... -> report -> bundle, and decides little.

Each stage is looked up in the store by the hash of its inputs and built only when it is not there,
so a second run, or one after a kill, goes on where the last one stopped.
"""

import gc
import json
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import ValidationError

from sdcompress.architecture import read_architecture
from sdcompress.bundle import REPORT, assemble, publish, require_replaceable, seal
from sdcompress.compress import CompressedIR
from sdcompress.convert import convert as convert_model
from sdcompress.errors import BundleError, InputError, OutputBusyError, QualityGateFailed
from sdcompress.evaluate.records import BudgetResult, ComponentSize, Evaluation
from sdcompress.gate import judge
from sdcompress.ir import IR_NAME, ir_bytes
from sdcompress.line import (
    SMALL_MODEL_BYTES,
    Line,
    Material,
    find_judging,
    find_material,
    run_apart,
)
from sdcompress.precision import count_by_precision, layers_of
from sdcompress.preflight import STAGES, describe, estimate, measure_speed, require_room
from sdcompress.progress import Progress, SilentProgress
from sdcompress.recipe import COMPONENTS, Convert, Recipe, parse_recipe
from sdcompress.report import write_report
from sdcompress.runtime import Manifest, read_manifest, verify
from sdcompress.runtime.manifest import FILE_NAME as MANIFEST
from sdcompress.source import locate
from sdcompress.store import Store, key_of
from sdcompress.trial import Trial

STORE = ".sdcompress"


@dataclass(frozen=True)
class Run:
    """What a run wrote. `bundle` is None when there is a report only."""

    output: Path
    report: Path
    bundle: Path | None
    evaluation: Evaluation
    components: Mapping[str, ComponentSize]
    budgets: tuple[BudgetResult, ...]

    @property
    def passed(self) -> bool:
        return all(budget.passed for budget in self.budgets)


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
    memory or on disk, unless `ignore_preflight`, and QualityGateFailed when a budget is broken;
    `output` then holds the report and nothing that could be taken for a bundle.
    """
    target = output_folder(recipe, output)
    shown = progress or SilentProgress()
    material = find_material(recipe, shown)
    judging = find_judging(recipe, material)
    with production_line(recipe, target, material, shown, fresh=fresh) as line:
        result = line.store.scratch / "result"
        candidate_key = key_of(recipe_keys=[line.compressed_key(c) for c in COMPONENTS])
        trial = Trial(line, judging, result, candidate_key)
        wanted = set(STAGES) - line.finished() - trial.finished()
        _preflight(line, target, wanted, refuse=not ignore_preflight)
        compressed = line.compressed()
        assemble(line.converted, {c: ir.folder for c, ir in compressed.items()}, result)
        sizes = _sizes(line.converted, compressed)
        run = _judge(trial, sizes, result, target)
        with shown.stage("bundle", str(output or target)) as advance:
            if run.passed:
                quality = _quality_summary(run.evaluation)
                seal(result, recipe.as_dict(), line.model_record(), quality)
            else:
                _keep_only_report(result)
            publish(result, target)
            advance(1, 1)
    if not run.passed:
        raise QualityGateFailed(_refusal(run))
    return run


def evaluate(
    bundle: Path | str,
    output: Path | str | None = None,
    *,
    overrides: tuple[str, ...] = (),
    fresh: bool = False,
    ignore_preflight: bool = False,
    progress: Progress | None = None,
) -> Run:
    """Measures a bundle against the float32 baseline of the model it was made from.

    The report goes to `output`, by default <bundle>-evaluation. `overrides` are
    ``key.path=value`` changes to the bundle's recipe; what made the bundle cannot be changed.
    Figures of an earlier evaluation are reused while nothing they depend on has changed; `fresh`
    measures everything anew. Raises BundleError when the bundle is not intact or its model is no
    longer the one it was made from, PreflightError as `quantize` does, and QualityGateFailed when a
    budget is broken.
    """
    folder = Path(bundle).resolve()
    problems = verify(folder)
    if problems:
        raise BundleError(f"{bundle} is not intact: " + "; ".join(problems[:5]))
    manifest = read_manifest(folder)
    made_by = [one for one in overrides if one.startswith(("compress", "convert", "calibrate"))]
    if made_by:
        raise InputError(
            f"--set {made_by[0]}: the bundle is made; its evaluation cannot change how"
        )
    recipe = parse_recipe(folder / MANIFEST, manifest.recipe, overrides)
    recipe = _pinned(recipe, manifest)
    target = output_folder(recipe, output or folder.with_name(f"{folder.name}-evaluation"))
    shown = progress or SilentProgress()
    material = find_material(recipe, shown, calibrates=False)
    _require_same_model(material, manifest.model, bundle)
    judging = find_judging(recipe, material)
    with production_line(recipe, target, material, shown, fresh=fresh) as line:
        result = line.store.scratch / "result"
        result.mkdir()
        files = {name: record.sha256 for name, record in manifest.files.items()}
        trial = Trial(line, judging, folder, key_of(files=files))
        wanted = {"convert", "draw", "sqnr", "measure"} - line.finished() - trial.finished()
        _preflight(line, target, wanted, refuse=not ignore_preflight)
        sizes = {c: _measured_size(c, recipe, line.converted, folder) for c in COMPONENTS}
        judged = _judge(trial, sizes, result, target)
        run = replace(judged, bundle=None)
        publish(result, target)
    if not run.passed:
        raise QualityGateFailed(_refusal(run))
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
    with production_line(recipe, target, find_material(recipe, shown), shown, fresh=fresh) as line:
        wanted = {"convert", "calibrate"} - line.finished()
        _preflight(line, target, wanted, refuse=not ignore_preflight)
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

    `options` are those of the recipe's `convert` section: weights, batch, height and width.
    """
    try:
        chosen = Convert.model_validate(options)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise InputError(f"cannot convert so: {faults}") from None
    target = Path(output).resolve()
    if target.exists() and (target.is_file() or any(target.iterdir())):
        raise InputError(f"{target} is not empty; choose a new folder")
    shown = progress or SilentProgress()
    source = locate(model, revision, variant, shown, config=config, loras=loras)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        finished = Path(scratch) / "result"
        with shown.stage("convert", f"{source.id} to OpenVINO IR") as advance:
            run_apart(source, convert_model, source, chosen, finished, on_progress=advance)
        gc.collect()  # unmaps IR files, which Windows cannot move while they are open
        publish(finished, target)
    return target


def output_folder(recipe: Recipe, output: Path | str | None) -> Path:
    """Returns where a run writes, as an absolute path: `output`, or build/<recipe name>.

    Raises InputError when something lies there that a run did not write.
    """
    target = Path(output or Path("build") / recipe.name).resolve()
    require_replaceable(target)
    return target


@contextmanager
def production_line(
    recipe: Recipe, target: Path, material: Material, progress: Progress, *, fresh: bool = False
) -> Iterator[Line]:
    """Holds the output folder for one run and yields its line.

    Raises OutputBusyError when another run holds it.
    """
    store_folder = target.parent / STORE
    lock_file = store_folder / "locks" / f"{target.name}.lock"
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock_file, timeout=0):
            store = Store.open(store_folder, target.name, fresh=fresh)
            try:
                yield Line(recipe, material, store, progress)
            finally:
                gc.collect()  # unmaps IR files, which Windows cannot delete while they are open
                store.close()
    except Timeout:
        raise OutputBusyError(
            f"another run is writing to {target}: wait for it to end, or choose another --output"
        ) from None


def _preflight(line: Line, target: Path, wanted: Collection[str], *, refuse: bool) -> None:
    """Shows what the `wanted` stages will take, and refuses them when that is not there."""
    if line.source.weight_bytes < SMALL_MODEL_BYTES or not set(wanted) - {"bundle"}:
        return
    sampling = line.recipe.sampling
    with line.progress.stage("preflight", "memory, disk and time") as advance:
        model = read_architecture(line.source, sampling.width, sampling.height)
        skipped = set(STAGES) - set(wanted)
        expected = estimate(line.recipe, model, measure_speed(line.recipe.device), skipped)
        advance(1, 1)
    line.progress.notice("expected of this run\n" + "\n".join(describe(expected)))
    if refuse:
        require_room(expected, target)


def _pinned(recipe: Recipe, manifest: Manifest) -> Recipe:
    """Returns the recipe at the hub commit the bundle was made from."""
    commit = str(manifest.model["revision"])
    if commit.startswith("sha256:"):  # a folder, or the demo
        return recipe
    return recipe.model_copy(update={"revision": commit})


def _require_same_model(
    material: Material, model: Mapping[str, object], bundle: Path | str
) -> None:
    if material.source.revision != model["revision"]:
        raise BundleError(
            f"{bundle} was made from {model['id']} at {model['revision']}, but "
            f"{material.source.id} is now at {material.source.revision}: a baseline of "
            "another model proves nothing"
        )
    if material.source.lora_records() != model.get("loras", []):
        raise BundleError(f"{bundle} was made with other LoRA files than are there now")


def _judge(trial: Trial, sizes: Mapping[str, ComponentSize], result: Path, target: Path) -> Run:
    """Evaluates, applies the gate and writes the report into `result`."""
    line = trial.line
    report = result / REPORT
    report.mkdir()
    evaluation = trial.evaluated(report)
    _write_layers(trial.candidate, report / "layers.json")
    budgets = judge(line.recipe.budgets, evaluation, sizes)
    with line.progress.stage("report", "json, markdown, picture grid") as advance:
        write_report(
            report,
            recipe=line.recipe.as_dict(),
            model=line.model_record(),
            device=line.recipe.device,
            components=sizes,
            evaluation=evaluation,
            budgets=budgets,
            stages=line.store.log,
        )
        advance(1, 1)
    passed = all(budget.passed for budget in budgets)
    published = _moved(evaluation, report, target / REPORT)
    return Run(target, target / REPORT, target if passed else None, published, sizes, budgets)


def _moved(evaluation: Evaluation, folder: Path, target: Path) -> Evaluation:
    """Returns the evaluation with its pictures' paths as they will be in `target`."""
    samples = tuple(
        replace(
            sample,
            baseline=target / sample.baseline.relative_to(folder),
            candidate=target / sample.candidate.relative_to(folder),
        )
        for sample in evaluation.samples
    )
    return replace(evaluation, samples=samples)


def _sizes(baseline: Path, compressed: Mapping[str, CompressedIR]) -> dict[str, ComponentSize]:
    return {
        component: ComponentSize(
            ir.method, ir_bytes(baseline / component), ir.bytes, ir.layers_by_precision
        )
        for component, ir in compressed.items()
    }


def _measured_size(component: str, recipe: Recipe, baseline: Path, bundle: Path) -> ComponentSize:
    folder = bundle / component
    layers = count_by_precision(layers_of(folder / IR_NAME))
    method = recipe.compress.method_of(component).method
    return ComponentSize(method, ir_bytes(baseline / component), ir_bytes(folder), layers)


def _write_layers(candidate: Path, file: Path) -> None:
    layers = {
        component: [asdict(layer) for layer in layers_of(candidate / component / IR_NAME)]
        for component in COMPONENTS
    }
    file.write_text(json.dumps(layers, indent=1) + "\n", encoding="utf-8")


def _quality_summary(evaluation: Evaluation) -> dict[str, object]:
    quality = evaluation.quality
    return {
        "clip_score": asdict(quality.clip_score),
        "psnr_db": asdict(quality.psnr_db),
        "ssim": asdict(quality.ssim),
    }


def _keep_only_report(result: Path) -> None:
    for path in result.iterdir():
        if path.name == REPORT:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _refusal(run: Run) -> str:
    broken = [budget for budget in run.budgets if not budget.passed]
    rows = []
    for budget in broken:
        side = "at most" if budget.kind == "max" else "at least"
        gap = abs(budget.value - budget.limit)
        rows.append(
            f"  {budget.name:<20} {budget.value:>10.4g}   {side} {budget.limit:<8g} "
            f"off by {gap:.4g}"
        )
    return (
        f"{len(broken)} of {len(run.budgets)} budgets are broken, so there is no bundle:\n"
        + "\n".join(rows)
        + f"\nThe report is in {run.report}"
    )
