"""Judges what is finished: a bundle against its own baseline, or any pipeline against another."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from sdcompress.bundle import publish
from sdcompress.errors import BundleError, CalibrationError, InputError
from sdcompress.evaluate.records import ComponentSize
from sdcompress.identity import (
    BASELINE,
    COMPRESSED,
    hash_pipeline,
    key_of_files,
    key_of_tiny_decoder,
)
from sdcompress.ir import IR_NAME, TINY_DECODER, ir_bytes, pipeline_bytes
from sdcompress.judging import find_judging
from sdcompress.line import Line, Material, find_material, run_apart
from sdcompress.methods import COMPONENTS
from sdcompress.opening import look_ahead, opened_store, output_folder, production_line
from sdcompress.precision import count_by_precision, layers_of
from sdcompress.preflight import estimate_sweep
from sdcompress.progress import Progress, SilentProgress
from sdcompress.prompts import Prompt, load_prompts
from sdcompress.recipe import Recipe, Runtime, parse_recipe
from sdcompress.runtime import (
    Economy,
    Manifest,
    Pipeline,
    Settings,
    read_manifest,
    require_device,
    require_scheduler,
)
from sdcompress.runtime.layout import read_layout
from sdcompress.runtime.manifest import FILE_NAME as MANIFEST
from sdcompress.runtime.manifest import require_whole
from sdcompress.sweep import Grid, TradeOff, allowed, finished, measure_trade_offs
from sdcompress.trial import LONG_STAGES, Trial
from sdcompress.verdict import Run, reach_verdict, require_passed

# What a folder without a manifest is judged by, unless a recipe says otherwise.
_USUAL = {"compress": {}, "budgets": {"clip_score_drop": 0.5}}
_MAKING = ("compress", "convert", "calibrate")


@dataclass(frozen=True)
class _Pipeline:
    """A folder to judge. It has no manifest where another tool wrote it."""

    folder: Path
    manifest: Manifest | None


def evaluate(
    bundle: Path | str,
    output: Path | str | None = None,
    *,
    against: Path | str | None = None,
    recipe: Recipe | None = None,
    overrides: tuple[str, ...] = (),
    fresh: bool = False,
    ignore_preflight: bool = False,
    progress: Progress | None = None,
) -> Run:
    """Measures a bundle against the float32 baseline of the model it was made from.

    With `against`, another pipeline folder is the baseline; either may be any folder in the layout
    of optimum-intel, whoever wrote it. The report goes to `output`, by default
    <bundle>-evaluation. How to evaluate is said by `recipe`, or by the one that made the bundle;
    `overrides` are ``key.path=value`` changes to it. What made the bundle cannot be changed.
    Figures of an earlier evaluation are reused while nothing they depend on has changed; `fresh`
    measures everything anew. Raises BundleError when a folder is not intact or its model is no
    longer the one it was made from, PreflightError as `quantize` does (with `against`, nothing is
    known of the model that an estimate could be made of), QualityGateFailed when a budget is broken
    and QualityUndecided when too few pictures were drawn to tell.
    """
    folder = Path(bundle).resolve()
    made_by = [one for one in overrides if one.startswith(_MAKING)]
    if made_by:
        raise InputError(
            f"--set {made_by[0]}: the bundle is made; its evaluation cannot change how"
        )
    judged = _opened(folder)
    chosen = _how(judged, recipe, overrides)
    target = output_folder(chosen, output or folder.with_name(f"{folder.name}-evaluation"))
    sides = [folder, *([Path(against).resolve()] if against else [])]
    if any(target == one or one in target.parents for one in sides):
        raise InputError(f"{target} is what is judged; choose another --output")
    _require_decoders(folder, [chosen.runtime.decoder])
    _require_layers(folder, chosen, [chosen.runtime])
    shown = progress or SilentProgress()
    if against is None:
        run = _against_own(judged, chosen, target, fresh, ignore_preflight, shown)
    else:
        other = _opened(Path(against).resolve())
        run = _against_other(judged, other, chosen, target, fresh, shown)
    require_passed(run)
    return run


def _opened(folder: Path) -> _Pipeline:
    """Raises BundleError for a bundle whose files are not those of its manifest."""
    if not (folder / MANIFEST).is_file():
        return _Pipeline(folder, None)
    require_whole(folder)
    return _Pipeline(folder, read_manifest(folder))


def _how(judged: _Pipeline, recipe: Recipe | None, overrides: tuple[str, ...]) -> Recipe:
    """The recipe that says how to evaluate."""
    folder, made = judged.folder, judged.manifest
    if recipe is not None:
        # How the bundle was made, and draws, is not for another recipe to say.
        making = _own(made) if made else {}
        return parse_recipe(Path(recipe.name), recipe.as_dict() | making, overrides)
    if made:
        return parse_recipe(folder / MANIFEST, made.recipe, overrides)
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", folder.name)[:64].strip("-._") or "pipeline"
    tiny = folder / TINY_DECODER
    convert = {"convert": {"tiny_decoder": str(tiny)}} if tiny.is_dir() else {}
    usual = {"schema": 1, "name": name, "model": str(folder), **convert, **_USUAL}
    return parse_recipe(folder, usual, overrides)


def sweep(
    bundle: Path | str,
    grid: Grid,
    *,
    turns: int = 1,
    overrides: tuple[str, ...] = (),
    fresh: bool = False,
    ignore_preflight: bool = False,
    progress: Progress | None = None,
) -> tuple[tuple[TradeOff, ...], float | None]:
    """Measures what combinations of a bundle's shortcuts gain and cost on its evaluation prompts.

    Returns them with the recipe's budget for the drop of the CLIP score. What was measured before
    is reused while nothing it depends on has changed. Usual combinations that the recipe rules out
    are left out with a notice. Raises InputError for others that it rules out, BundleError and
    PreflightError as `evaluate` does.
    """
    folder = Path(bundle).resolve()
    judged, shown = _opened(folder), progress or SilentProgress()
    recipe = _how(judged, None, overrides)
    target = output_folder(recipe, folder.with_name(f"{folder.name}-sweep"))
    _require_decoders(folder, grid.decoders)
    combinations, left_out = allowed(grid, recipe)
    for scheduler in grid.schedulers:
        require_scheduler(folder, scheduler)
    if left_out:
        shown.notice(f"{len(left_out)} of the usual combinations are left out: {left_out[0]}")
    candidates = [Runtime.model_validate(one) for one in combinations]
    _require_layers(folder, recipe, candidates)
    expect = partial(estimate_sweep, candidates=candidates, turns=turns)
    with _own_trial(judged, recipe, target, fresh, shown) as (line, trial):
        done = line.finished() | finished(trial, combinations, turns)
        wanted = {"convert", "draw", "measure"} - done
        look_ahead(line, target, wanted, refuse=not ignore_preflight, expect=expect)
        whole, folders = _with_baseline(line, trial, folder)
        found = measure_trade_offs(whole, folders, combinations, turns)
        return found, recipe.budgets.clip_score_drop


def _require_decoders(folder: Path, decoders: Collection[str]) -> None:
    if "tiny" in decoders and not read_layout(folder).has_tiny_decoder:
        raise InputError(
            f"{folder} has no tiny_decoder to draw with: build it with convert.tiny_decoder, or "
            "draw with the VAE's"
        )


def _require_layers(folder: Path, recipe: Recipe, candidates: Sequence[Runtime]) -> None:
    """Raises InputError for more outer layers than the UNet has, before anything is drawn."""
    deepest = max(candidates, key=lambda one: (one.cache_interval > 1) * one.cache_depth)
    if deepest.cache_interval > 1 and deepest.cache_depth > 1:
        drawn = recipe.model_copy(update={"runtime": deepest})
        settings = Settings(**drawn.candidate_settings)
        Pipeline.load(folder, verify="never").contents(settings, 1, Economy())


@contextmanager
def _own_trial(
    judged: _Pipeline, recipe: Recipe, target: Path, fresh: bool, progress: Progress
) -> Iterator[tuple[Line, Trial]]:
    """The line that makes a bundle's baseline, and the trial of the bundle against it."""
    folder, manifest = judged.folder, judged.manifest
    if manifest is None:
        raise BundleError(
            f"{folder} has no manifest that names the model it was made from; say what to compare "
            "it with: --against FOLDER"
        )
    recipe = _pinned(recipe, manifest)
    material = find_material(recipe, progress, makes=False)
    _require_same_model(material, manifest.model, folder)
    judging = find_judging(recipe, _calibrated_on(judged, progress))
    with production_line(recipe, target, material, progress, fresh=fresh) as line:
        keys = line.keys() | _keys(judged)
        yield line, Trial(recipe, line.store, progress, line.run, judging, keys)


def _with_baseline(line: Line, trial: Trial, candidate: Path) -> tuple[Trial, dict[str, Path]]:
    """The trial with the baseline, which is made now, and both sides' folders."""
    folders = {BASELINE: line.converted, COMPRESSED: candidate}
    return replace(trial, keys={**trial.keys, BASELINE: line.keys()[BASELINE]}), folders


def _own(made: Manifest) -> dict[str, Any]:
    """What of a bundle's recipe is its own, whoever judges it."""
    kept = {key: made.recipe[key] for key in _MAKING if key in made.recipe}
    return kept | {"runtime": made.recipe.get("runtime", {})}


def _against_own(
    judged: _Pipeline,
    recipe: Recipe,
    target: Path,
    fresh: bool,
    ignore_preflight: bool,
    progress: Progress,
) -> Run:
    with _own_trial(judged, recipe, target, fresh, progress) as (line, trial):
        wanted = {"convert", *LONG_STAGES} - line.finished() - trial.finished()
        look_ahead(line, target, wanted, refuse=not ignore_preflight)
        whole, folders = _with_baseline(line, trial, judged.folder)
        return _judge(whole, folders, whole.recipe, line.model_record(), target)


def _against_other(
    judged: _Pipeline,
    other: _Pipeline,
    recipe: Recipe,
    target: Path,
    fresh: bool,
    progress: Progress,
) -> Run:
    """Both sides are folders as they are. Neither is traced back to a model."""
    require_device(recipe.device, execution_precision=recipe.execution_precision)
    for side in (other, judged):
        read_layout(side.folder)  # says what is missing
        for scheduler in recipe.schedulers:
            require_scheduler(side.folder, scheduler)
    calibrated = _calibrated_on(judged, progress)
    if other.manifest:
        calibrated += _calibrated_on(other, progress)
    judging = find_judging(recipe, calibrated)
    with opened_store(target, fresh=fresh) as store:
        keys = {BASELINE: key_of_files(_hashes(other))} | _keys(judged)
        apart = partial(run_apart, pipeline_bytes(other.folder))
        trial = Trial(recipe, store, progress, apart, judging, keys)
        folders = {BASELINE: other.folder, COMPRESSED: judged.folder}
        model: dict[str, Any] = {
            "id": other.folder.name,
            "revision": f"sha256:{keys[BASELINE]}",
            "variant": None,
            "notice": None,
            "loras": [],
        }
        return _judge(trial, folders, recipe if judged.manifest else None, model, target)


def _judge(
    trial: Trial,
    folders: Mapping[str, Path],
    made_by: Recipe | None,
    model: Mapping[str, Any],
    target: Path,
) -> Run:
    """Moves the report to `target`; `made_by` is the recipe of the candidate, where it is known."""
    result = trial.store.scratch / "result"
    result.mkdir()
    run = reach_verdict(trial, folders, _sizes(folders, made_by), model, result, target)
    publish(result, target)
    return replace(run, bundle=None)


def _calibrated_on(judged: _Pipeline, progress: Progress) -> tuple[Prompt, ...]:
    """The prompts a bundle was calibrated on, as far as that can be known."""
    name = judged.folder.name
    if judged.manifest is None:
        progress.notice(f"{name} does not tell which prompts it was calibrated on")
        return ()
    made = parse_recipe(judged.folder / MANIFEST, judged.manifest.recipe)
    if not made.compress.needs_calibration:
        return ()
    chosen = made.calibrate
    try:
        return load_prompts(chosen.prompt_set, chosen.prompts, chosen.seed)
    except CalibrationError as fault:
        progress.notice(f"{name}: prompts it was calibrated on cannot be compared: {fault}")
        return ()


def _keys(candidate: _Pipeline) -> dict[str, str]:
    hashes = _hashes(candidate)
    return {COMPRESSED: key_of_files(hashes)} | key_of_tiny_decoder(hashes)


def _hashes(pipeline: _Pipeline) -> dict[str, str]:
    if pipeline.manifest is None:
        return hash_pipeline(pipeline.folder)
    return {name: one.sha256 for name, one in pipeline.manifest.files.items()}


def _sizes(folders: Mapping[str, Path], recipe: Recipe | None) -> dict[str, ComponentSize]:
    """The parts that both sides have; the method is that of the recipe that made the candidate."""
    baseline, candidate = folders[BASELINE], folders[COMPRESSED]
    found = {}
    for component in COMPONENTS:
        if not all((side / component / IR_NAME).is_file() for side in (baseline, candidate)):
            continue
        method = recipe.compress.method_of(component).method if recipe else "as found"
        layers = count_by_precision(layers_of(candidate / component / IR_NAME))
        sizes = ir_bytes(baseline / component), ir_bytes(candidate / component)
        found[component] = ComponentSize(method, *sizes, layers)
    return found


def _pinned(recipe: Recipe, manifest: Manifest) -> Recipe:
    """Returns the recipe at the hub commit the bundle was made from."""
    commit = str(manifest.model["revision"])
    if commit.startswith("sha256:"):  # a folder, or the demo
        return recipe
    return recipe.model_copy(update={"revision": commit})


def _require_same_model(material: Material, model: Mapping[str, Any], bundle: Path) -> None:
    if material.source.revision != model["revision"]:
        raise BundleError(
            f"{bundle} was made from {model['id']} at {model['revision']}, but "
            f"{material.source.id} is now at {material.source.revision}: a baseline of "
            "another model proves nothing"
        )
    if material.source.lora_records() != model.get("loras", []):
        raise BundleError(f"{bundle} was made with other LoRA files than are there now")
