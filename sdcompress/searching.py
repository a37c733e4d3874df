"""Finds the strongest compression of the UNet that still passes the gate, and writes its recipe.

Every group of layers is measured in every variant: its error on recorded calls, its time and bytes
on the device. A solver chooses, the choices are built, drawn with and ranked, and the best is made
and evaluated as any recipe is, on prompts that had no part in the search.
"""

import gc
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.metadata import version
from math import log10
from pathlib import Path

from sdcompress.bundle import assemble, publish
from sdcompress.calibrate import ModelInputs
from sdcompress.errors import InputError, QualityGateFailed, QualityUndecided
from sdcompress.evaluate.comparing import changes
from sdcompress.gate import judge_pictures, status_of
from sdcompress.identity import BASELINE, COMPRESSED
from sdcompress.ir import IR_NAME, ir_bytes
from sdcompress.judging import Judging, find_judging
from sdcompress.line import Line, find_material
from sdcompress.methods import Fp16, Method
from sdcompress.opening import look_ahead, production_line
from sdcompress.preflight import estimate_search
from sdcompress.processor import processor_brand
from sdcompress.progress import Progress, SilentProgress
from sdcompress.prompts import Prompt, load_prompts
from sdcompress.recipe import Recipe
from sdcompress.report.comparison import dominates
from sdcompress.report.search_page import RECIPE_FILE, write_recipe, write_search
from sdcompress.runtime import Settings
from sdcompress.runtime.layout import read_layout
from sdcompress.runtime.schedulers.config import read_scheduler_config
from sdcompress.runtime.schedulers.levels import noise_levels
from sdcompress.search.calls import Call, Guidance, pick_calls
from sdcompress.search.cost import ModelCost, measure_costs
from sdcompress.search.groups import Group, group_layers
from sdcompress.search.records import Candidate, Hunt
from sdcompress.search.sensitivity import Experiment, Sensitivity, measure_sensitivity
from sdcompress.search.solver import Choice, Limits, Option, ladder, total
from sdcompress.search.switchboard import compressed_layers
from sdcompress.search.writing import PLAIN, as_method
from sdcompress.store import key_of
from sdcompress.trial import Trial, shots_of
from sdcompress.verdict import Run
from sdcompress.workflow import quantize

OWN = "as the recipe says"


@dataclass(frozen=True)
class Found:
    """What a search wrote: its report, and the recipe and run of what passed the gate."""

    folder: Path
    hunt: Hunt
    chosen: Candidate
    recipe: Path
    run: Run


def search(
    recipe: Recipe,
    output: Path | str | None = None,
    *,
    fresh: bool = False,
    ignore_preflight: bool = False,
    progress: Progress | None = None,
) -> Found:
    """Looks for a compression of the UNet within the recipe's budgets, as its `search` says.

    Writes search.html, search.json and the recipe that was found to `output`, by default
    build/<recipe name>-search, and builds and evaluates that recipe in a folder beside it. What is
    measured is kept and not measured again. Raises PreflightError as `quantize` does, InputError
    when no choice keeps to the limits, and QualityGateFailed or QualityUndecided when none of the
    candidates passes the full evaluation.
    """
    shown = progress or SilentProgress()
    target = _own_folder(Path(output or Path("build") / f"{recipe.name}-search").resolve())
    staged = _staged(recipe)
    material = find_material(staged, shown)
    prompts = _prompts(staged)
    judging = find_judging(staged, (*material.calibration_prompts, *prompts))
    with production_line(staged, target, material, shown, fresh=fresh) as line:
        wanted = {"convert", "calibrate", "ranges", "compress", "sensitivity", "cost", "draw"}
        look_ahead(
            line,
            target,
            wanted - line.finished(),
            refuse=not ignore_preflight,
            expect=estimate_search,
        )
        work = _Work(recipe, line, replace(judging, prompts=prompts))
        hunt = work.hunt()
        result = line.store.scratch / "result"
        result.mkdir()
        write_search(result, recipe, hunt)
        publish(result, target)
    return _confirmed(recipe, hunt, target, shown, ignore_preflight=ignore_preflight)


def _confirmed(
    recipe: Recipe, hunt: Hunt, folder: Path, progress: Progress, *, ignore_preflight: bool
) -> Found:
    """Tries the solver's candidates in their order on the held-out prompts, until one passes."""
    refusals: list[QualityGateFailed | QualityUndecided] = []
    for candidate in hunt.candidates:
        if candidate.choice is None:
            continue
        found = write_recipe(recipe, candidate, folder / RECIPE_FILE)
        progress.notice(f"evaluating {candidate.name} on prompts that had no part in the search")
        try:
            run = quantize(
                found,
                folder.with_name(found.name),
                ignore_preflight=ignore_preflight,
                progress=progress,
            )
        except (QualityGateFailed, QualityUndecided) as refusal:
            progress.notice(f"{candidate.name} did not pass:\n{refusal}")
            refusals.append(refusal)
        else:
            return Found(folder, hunt, candidate, folder / RECIPE_FILE, run)
    (folder / RECIPE_FILE).unlink()  # nobody should take it for one that passed
    raise type(refusals[0])(_in_the_way(hunt, refusals))


def _in_the_way(hunt: Hunt, refusals: Sequence[Exception]) -> str:
    """What the last and most careful candidate was refused for, and which groups are behind it."""
    last = [one for one in hunt.candidates if one.choice is not None][-1]
    rows = [
        f"  {one.group:<32} as {one.variant:<10} {10 * -log10(max(one.noise, 1e-12)):>6.1f} dB"
        f"   content {one.content:.4f}"
        for one in hunt.offenders(last)
    ]
    return (
        f"none of {len(refusals)} candidates passes the gate. {last.name}:\n{refusals[-1]}\n"
        "Groups that add most to its error (SQNR expected with one alone; CLIP's view of it):\n"
        + "\n".join(rows)
        + "\nAsk for more search.candidates, add gentler search.variants, or widen the budgets"
    )


def _own_folder(target: Path) -> Path:
    known = {"search.html", "search.json", RECIPE_FILE}
    if target.is_file():
        raise InputError(f"{target} is a file; --output must be a folder")
    foreign = [one.name for one in target.iterdir()] if target.is_dir() else []
    foreign = [name for name in foreign if name not in known]
    if foreign:
        raise InputError(
            f"{target} holds {min(foreign)}, which a search did not write and would delete; "
            "choose another --output"
        )
    return target


def _staged(recipe: Recipe) -> Recipe:
    """The recipe with a method for the UNet that asks for all that the variants need."""
    variants = recipe.search.variants.values()
    calibrated = [one for one in variants if one.needs_statistics]
    calibrated += [one for one in variants if one.is_calibrated]
    if not calibrated:
        raise InputError(
            f"recipe {recipe.name}: none of search.variants is calibrated, so no inputs are "
            "recorded to judge by: add one, such as {method: int8}"
        )
    return recipe.with_unet(calibrated[0])


def _prompts(recipe: Recipe) -> tuple[Prompt, ...]:
    """Prompts of the calibration set beyond those that are calibrated on."""
    chosen, count = recipe.calibrate, recipe.search.prompts
    return load_prompts(chosen.prompt_set, chosen.prompts + count, chosen.seed)[-count:]


@dataclass(frozen=True)
class _Work:
    """A search on one line; `judging` has the prompts that candidates are drawn with."""

    recipe: Recipe
    line: Line
    judging: Judging

    def hunt(self) -> Hunt:
        """Measures, chooses, builds, draws and ranks."""
        options = tuple(self._options())
        choices = self._choices(options)
        methods: dict[str, tuple[Method, Choice | None]] = {OWN: (self.recipe.compress.unet, None)}
        for number, choice in enumerate(choices, start=1):
            method = as_method(choice, self._groups, self.recipe.search.variants)
            methods[f"choice {number}"] = (method or Fp16(method="fp16"), choice)
        candidates = self._measured(methods, options)
        return Hunt(
            self._groups,
            dict(self._sensitivities),
            dict(self._costs),
            options,
            _ranked(candidates, self.recipe.search.objective),
            processor_brand(),
        )

    @cached_property
    def _variants(self) -> dict[str, Path]:
        made = self.recipe.search.variants.items()
        return {name: self.line.compressed_by("unet", one).folder for name, one in made}

    @cached_property
    def _baseline(self) -> Path:
        return self.line.converted / "unet" / IR_NAME

    @cached_property
    def _groups(self) -> tuple[Group, ...]:
        layers = compressed_layers(self._baseline, self._variants.values())
        return group_layers(layers, self.recipe.search.grouping)

    def _changed(self, variant: str) -> tuple[Group, ...]:
        """The groups that have anything to choose between 16 bits and a variant."""
        layers = set(compressed_layers(self._baseline, [self._variants[variant]]))
        return tuple(group for group in self._groups if layers & set(group.layers))

    @cached_property
    def _calls(self) -> tuple[Call, ...]:
        branches = self.recipe.sampling.branches
        inputs = ModelInputs(self.line.calibrated, "unet", branches)
        layout = read_layout(self.line.converted)
        config = read_scheduler_config(layout.scheduler, None, str(layout.scheduler_path))
        return pick_calls(inputs, self.recipe.search.timesteps, noise_levels(config))

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: value.shape for name, value in self._calls[0].inputs.items()}

    @cached_property
    def _sensitivities(self) -> Mapping[str, Sensitivity]:
        return {name: self._sensitivity(name) for name in self._variants}

    def _sensitivity(self, variant: str) -> Sensitivity:
        options, recipe = self.recipe.search, self.recipe
        short = options.model_dump(
            include={"timesteps", "confirmed", "trajectories", "trajectory_steps"}
        )
        settings = replace(Settings(**recipe.baseline_settings), steps=options.trajectory_steps)
        shots = shots_of(self.judging.prompts, recipe.evaluate)[: options.trajectories]
        groups = self._changed(variant)
        experiment = Experiment(
            self.line.converted,
            self._variants[variant],
            recipe.device,
            groups,
            self._calls,
            Guidance(settings.guidance_scale, read_layout(self.line.converted).prediction_type),
            shots,
            settings,
            self.judging.instruments.scorer,
            options.confirmed,
        )
        key = key_of(
            models=[
                self.line.converted_key,
                self.line.key_of_method("unet", options.variants[variant]),
            ],
            calls=self.line.calibrated_key,
            groups=[asdict(one) for one in groups],
            options=short,
            settings=asdict(settings),
            shots=[asdict(one) for one in shots],
            scorer=self.judging.instruments.scorer.name,
            device=recipe.device,
            tools={name: version(name) for name in ("openvino", "torch", "transformers")},
        )
        return self.line.store.record(
            self.line.progress,
            "sensitivity",
            key,
            f"{variant}: {len(groups)} groups at {len(self._calls)} timesteps",
            Sensitivity,
            lambda folder, advance: self.line.run(
                measure_sensitivity, experiment, folder, on_progress=advance
            ),
            resumable=True,
        )

    @cached_property
    def _costs(self) -> Mapping[str, ModelCost]:
        """Of the UNet in 16 bits and as each variant."""
        models = {name: folder / IR_NAME for name, folder in self._variants.items()}
        return self._cost_of({PLAIN: self._baseline} | models, "of every variant")

    def _cost_of(self, models: Mapping[str, Path], detail: str) -> dict[str, ModelCost]:
        key = key_of(
            models={name: str(xml.parent.parent.name) for name, xml in models.items()},
            groups=[asdict(one) for one in self._groups],
            shapes={name: list(shape) for name, shape in self._shapes.items()},
            device=self.recipe.device,
            processor=processor_brand(),
            openvino=version("openvino"),
        )
        return self.line.store.record(
            self.line.progress,
            "cost",
            key,
            f"time and bytes {detail}",
            dict[str, ModelCost],
            lambda _, advance: self.line.run(
                measure_costs,
                models,
                self._groups,
                self._shapes,
                self.recipe.device,
                on_progress=advance,
            ),
        )

    def _options(self) -> Iterator[Option]:
        """Every group as each variant that changes it, and in 16 bits."""
        for group in self._groups:
            for variant in (PLAIN, *self._variants):
                noise, content = 0.0, 0.0
                if variant != PLAIN:
                    sensitivity = self._sensitivities[variant]
                    if sensitivity.of(group.name) is None:
                        continue
                    noise, content = sensitivity.expected(group.name)
                cost = self._costs[variant].of(group.name)
                yield Option(
                    group.name,
                    variant,
                    noise,
                    content,
                    cost.seconds,
                    cost.stored_bytes,
                    cost.executed_bytes,
                )

    def _choices(self, options: Sequence[Option]) -> list[Choice]:
        """Some of the solver's, from the cheapest on, evenly over what it offers."""
        wanted = self.recipe.search
        limits = Limits(
            seconds=wanted.latency_ratio_max and self._seconds_allowed(wanted.latency_ratio_max),
            stored_bytes=wanted.size_mb_max and wanted.size_mb_max * 1e6 - self._other_bytes(),
            executed_bytes=wanted.memory_mb_max and wanted.memory_mb_max * 1e6,
        )
        with self.line.progress.stage("solve", f"least {wanted.objective}") as advance:
            found = list(ladder(options, wanted.objective, limits))
            advance(1, 1)
        found = [one for one in found if set(one.values()) != {PLAIN}]
        if not found:
            raise InputError(
                f"recipe {self.recipe.name}: no choice of search.variants keeps to the limits of "
                "its search section: raise them, or add variants"
            )
        places = {round(one) for one in _evenly(len(found), wanted.candidates)}
        return [found[place] for place in sorted(places)]

    def _seconds_allowed(self, ratio: float) -> float:
        """What groups may take so that a whole call takes so much of one in 16 bits."""
        plain = self._costs[PLAIN]
        grouped = sum(one.seconds for one in plain.groups)
        return max(0.0, ratio * plain.seconds - (plain.seconds - grouped))

    def _other_bytes(self) -> float:
        """What a compressed UNet's files hold beside the weights of its groups, at most."""
        return max(
            ir_bytes(folder) - sum(one.stored_bytes for one in self._costs[name].groups)
            for name, folder in self._variants.items()
        )

    def _measured(
        self, methods: Mapping[str, tuple[Method, Choice | None]], options: Sequence[Option]
    ) -> list[Candidate]:
        folders = {
            name: self.line.compressed_by("unet", method).folder
            for name, (method, _) in methods.items()
        }
        models = {name: folder / IR_NAME for name, folder in folders.items()}
        costs = self._cost_of({PLAIN: self._baseline} | models, "of every candidate")
        found = []
        for name, (method, choice) in methods.items():
            found.append(
                replace(
                    self._drawn(name, method),
                    choice=choice,
                    expected_noise=total(options, choice, "noise") if choice else None,
                    expected_content=total(options, choice, "content") if choice else None,
                    call_seconds=costs[name].seconds,
                    call_ratio=costs[name].seconds / costs[PLAIN].seconds,
                    stored_bytes=ir_bytes(folders[name]),
                    executed_bytes=sum(one.executed_bytes for one in costs[name].groups),
                )
            )
        return found

    def _drawn(self, name: str, method: Method) -> Candidate:
        """A candidate with what its pictures tell."""
        recipe = self.line.recipe.with_unet(method)
        line = replace(self.line, recipe=recipe)
        folder = line.store.scratch / name.replace(" ", "_")
        assemble(line.converted, {c: ir.folder for c, ir in line.compressed().items()}, folder)
        if line.tiny_decoder:
            shutil.copytree(line.tiny_decoder, folder / line.tiny_decoder.name)
        trial = Trial(recipe, line.store, line.progress, line.run, self.judging, line.keys())
        both = trial.ways(len(self.judging.prompts))
        ways = {side: both[side] for side in (BASELINE, COMPRESSED)}
        folders = {BASELINE: line.converted, COMPRESSED: folder}
        pictures = {side: trial.draw(way, folders) for side, way in ways.items()}
        seen, likeness = trial.score(ways, pictures)
        instruments = self.judging.instruments
        metrics = instruments.picture_metrics()
        told = changes(instruments, metrics, seen[BASELINE], seen[COMPRESSED], likeness[COMPRESSED])
        by_name = {metric.name: change for metric, change in told}
        budgets = judge_pictures(recipe.budgets, by_name)
        gc.collect()  # unmaps IR files, which Windows cannot delete while they are open
        shutil.rmtree(folder, ignore_errors=True)  # a large one's copies would fill the disk
        return Candidate(
            name=name,
            method=method,
            figures={metric: change.value for metric, change in by_name.items()},
            samples=len(self.judging.prompts),
            outcome=status_of(budgets),
        )


def _ranked(candidates: Sequence[Candidate], objective: str) -> tuple[Candidate, ...]:
    """Those whose pictures broke no budget first, the least cost first."""
    places = {
        one.name: (one.figures["clip_score"].value, one.cost(objective)) for one in candidates
    }
    marked = [
        replace(
            one,
            on_front=not any(dominates(other, places[one.name]) for other in places.values()),
        )
        for one in candidates
    ]
    return tuple(sorted(marked, key=lambda one: (one.outcome == "failed", one.cost(objective))))


def _evenly(count: int, wanted: int) -> Iterator[float]:
    """Places from the first to the last of `count`."""
    for part in range(wanted):
        yield part * (count - 1) / max(1, wanted - 1)
