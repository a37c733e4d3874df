"""Finds the strongest compression of the UNet that still passes the gate, and writes its recipe.

Every group of layers is measured in every variant: its error on recorded calls, its time and bytes
on the device. A solver chooses, the choices are built, drawn with and ranked, and the best is made
and evaluated as any recipe is, on prompts that had no part in the search.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import log10
from pathlib import Path

from sdcompress.bundle import publish, require_replaceable
from sdcompress.candidates import Contest, Proposal
from sdcompress.errors import InputError, QualityGateFailed, QualityUndecided
from sdcompress.evaluate.checker import speaks_of_scenes
from sdcompress.judging import Judging, find_judging
from sdcompress.line import Line, find_material
from sdcompress.methods import COMPONENTS, PLAIN, Fp16
from sdcompress.opening import look_ahead, production_line
from sdcompress.preflight import estimate_search
from sdcompress.processor import processor_brand
from sdcompress.progress import Progress, SilentProgress
from sdcompress.prompts import Prompt, load_prompts
from sdcompress.recipe import Recipe
from sdcompress.report.search_page import (
    RECIPE_FILE,
    found_name,
    found_recipe,
    write_recipe,
    write_search,
)
from sdcompress.search.records import Candidate, Hunt
from sdcompress.search.solver import Choice, ladder
from sdcompress.search.writing import as_method
from sdcompress.survey import Survey
from sdcompress.verdict import Run
from sdcompress.workflow import quantize

OWN = "as the recipe says"
_LEAST_NOISE = 1e-12
_STAGES = (
    "convert", "calibrate", "ranges", "compress", "sensitivity", "cost",
    "draw", "sqnr", "layers", "measure",
)  # fmt: skip
_Refusal = QualityGateFailed | QualityUndecided


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

    Builds and evaluates what it finds as the recipe <name>_search, in a folder beside `output`, by
    default build/<recipe name>-search, where it then writes search.html, search.json and that
    recipe. What is measured is kept and not measured again. Raises PreflightError as `quantize`
    does, InputError when no choice keeps to the limits, and QualityGateFailed or QualityUndecided
    when none of the candidates passes the full evaluation; `output` then has no recipe.
    """
    shown = progress or SilentProgress()
    target = Path(output or Path("build") / f"{recipe.name}-search").resolve()
    bundle = _bundle_folder(recipe, target)
    staged = _staged(recipe)
    material = find_material(staged, shown)
    prompts = _prompts(staged)
    judging = find_judging(staged, (*material.calibration_prompts, *prompts))
    with production_line(staged, target, material, shown, fresh=fresh) as line:
        look_ahead(
            line,
            target,
            set(_STAGES) - _finished(recipe, line),
            refuse=not ignore_preflight,
            expect=lambda _, *known: estimate_search(recipe, *known),
        )
        hunt = _hunt(recipe, line, _with_prompts(judging, prompts))
        result = line.store.scratch / "result"
        result.mkdir()
        write_search(result, recipe, hunt)
        try:
            chosen, run = _confirmed(recipe, hunt, bundle, shown, ignore_preflight=ignore_preflight)
        except (QualityGateFailed, QualityUndecided):
            publish(result, target)
            raise
        write_recipe(recipe, chosen, result / RECIPE_FILE)
        publish(result, target)
    return Found(target, hunt, chosen, target / RECIPE_FILE, run)


def _hunt(recipe: Recipe, line: Line, judging: Judging) -> Hunt:
    """Measures, chooses, builds, draws and ranks."""
    survey = Survey(recipe, line, judging)
    contest, choices = Contest(line, judging, survey), _choices(survey)
    found = [contest.drawn(Proposal(OWN, recipe.compress.unet))]

    def fails(place: int) -> bool:
        choice = choices[place]
        method = as_method(choice, survey.groups, recipe.search.variants) or Fp16(method=PLAIN)
        found.append(contest.drawn(Proposal(f"choice {len(found)}", method, choice)))
        return found[-1].outcome == "failed"

    close_in(len(choices), recipe.search.candidates, fails)
    return Hunt(
        survey.groups,
        dict(survey.sensitivities),
        dict(survey.costs),
        survey.options,
        contest.ranked(found),
        processor_brand(),
    )


def _choices(survey: Survey) -> list[Choice]:
    """The solver's, from the cheapest on."""
    wanted, progress = survey.recipe.search, survey.line.progress
    options, limits = survey.options, survey.limits()
    with progress.stage("solve", f"least {wanted.objective}") as advance:
        found = list(ladder(options, wanted.objective, limits))
        advance(1, 1)
    if not found:
        raise InputError(
            f"recipe {survey.recipe.name}: no choice of search.variants keeps to the limits of "
            "its search section: raise them, or add variants"
        )
    found = [one for one in found if set(one.values()) != {PLAIN}]
    if not found:
        raise InputError(
            f"recipe {survey.recipe.name}: by {wanted.objective}, none of search.variants costs "
            "less than 16 bits in any group: choose another search.objective, or other variants"
        )
    return found


def close_in(count: int, most: int, fails: Callable[[int], bool]) -> None:
    """Tries the first of so many places, then halves the rest for the first that does not fail.

    What is left of `most` tries goes evenly to the places behind it, which may be needed should it
    fail later on.
    """
    low, high = -1, count
    tried: list[int] = []
    while len(tried) < most and high - low > 1:
        tried.append((low + high) // 2 if tried else 0)
        low, high = (tried[-1], high) if fails(tried[-1]) else (low, tried[-1])
    behind = [place for place in range(high + 1, count) if place not in tried]
    left = min(most - len(tried), len(behind))
    for part in range(left):
        fails(behind[(part + 1) * len(behind) // left - 1])


def _confirmed(
    recipe: Recipe, hunt: Hunt, bundle: Path, progress: Progress, *, ignore_preflight: bool
) -> tuple[Candidate, Run]:
    """Tries the solver's candidates in their order on the held-out prompts, until one passes."""
    refusals: list[tuple[Candidate, _Refusal]] = []
    for candidate in hunt.candidates:
        if candidate.choice is None or candidate.excess:
            continue
        progress.notice(f"evaluating {candidate.name} on prompts that had no part in the search")
        try:
            run = quantize(
                found_recipe(recipe, candidate),
                bundle,
                ignore_preflight=ignore_preflight,
                progress=progress,
            )
        except (QualityGateFailed, QualityUndecided) as refusal:
            progress.notice(f"{candidate.name} did not pass:\n{refusal}")
            refusals.append((candidate, refusal))
        else:
            return candidate, run
    raise _in_the_way(hunt, refusals)


def _in_the_way(hunt: Hunt, refusals: Sequence[tuple[Candidate, _Refusal]]) -> _Refusal:
    """What the candidates were refused for, and which groups are behind the most careful's errors.

    Where more pictures could decide, that is what is told.
    """
    over = [f"  {one.name}: {', '.join(one.excess)}" for one in hunt.candidates if one.excess]
    if not refusals:
        return QualityGateFailed(
            "no candidate keeps to the limits of the search, as measured:\n"
            + "\n".join(over)
            + "\nAsk for a little less than you need, for groups do not add up exactly, or add "
            "search.variants"
        )
    undecided = [one for one in refusals if isinstance(one[1], QualityUndecided)]
    careful, refusal = min(undecided or refusals, key=lambda one: one[0].expected_noise or 0.0)
    rows = [
        f"  {one.group:<32} as {one.variant:<10} "
        f"{10 * -log10(max(one.noise, _LEAST_NOISE)):>6.1f} dB   content {one.content:.4f}"
        for one in hunt.offenders(careful)
    ]
    message = [
        f"none of {len(refusals)} candidates passes the gate. {careful.name}:",
        str(refusal),
        "Groups that add most to its error (SQNR expected with one alone; CLIP's view of it):",
        *rows,
        *(["Not evaluated, for they exceed limits of the search:", *over] if over else []),
        "Ask for more search.candidates, add gentler search.variants, or widen the budgets",
    ]
    return type(refusal)("\n".join(message))


def _finished(recipe: Recipe, line: Line) -> set[str]:
    """The names of the stages that are done: compression when it is by every variant."""
    keys = [
        *(line.key_of_method("unet", one) for one in recipe.search.variants.values()),
        line.key_of_method("unet", recipe.compress.unet),
        *(line.compressed_key(one) for one in COMPONENTS if one != "unet"),
    ]
    done = line.finished() - {"compress"}
    return done | ({"compress"} if all(line.store.has("compress", key) for key in keys) else set())


def _bundle_folder(recipe: Recipe, target: Path) -> Path:
    """Where the bundle of what is found goes. Raises InputError for what cannot be written."""
    bundle = target.with_name(found_name(recipe))
    if bundle == target:
        raise InputError(f"{target} is where the bundle goes; choose another --output")
    if target == Path.cwd():
        raise InputError(f"{target} is the current folder; choose a new one with --output")
    if target.is_file():
        raise InputError(f"{target} is a file; --output must be a folder")
    known = {"search.html", "search.json", RECIPE_FILE}
    foreign = {one.name for one in target.iterdir()} - known if target.is_dir() else ()
    if foreign:
        raise InputError(
            f"{target} holds {min(foreign)}, which a search did not write and would delete; "
            "choose another --output"
        )
    require_replaceable(bundle)
    return bundle


def _staged(recipe: Recipe) -> Recipe:
    """The recipe with a method for the UNet that asks for all that the variants need."""
    wanted = recipe.search
    variants = wanted.variants.values()
    calibrated = [one for one in variants if one.needs_statistics]
    calibrated += [one for one in variants if one.is_calibrated]
    if not calibrated:
        raise InputError(
            f"recipe {recipe.name}: none of search.variants is calibrated, so no inputs are "
            "recorded to judge by: add one, such as {method: int8}"
        )
    calls = recipe.calibrate.samples // recipe.sampling.branches
    if wanted.timesteps > calls:
        raise InputError(
            f"recipe {recipe.name}: search.timesteps asks for {wanted.timesteps} calls, but "
            f"{calls} are recorded: lower it, or raise calibrate.samples"
        )
    return recipe.with_unet(calibrated[0])


def _prompts(recipe: Recipe) -> tuple[Prompt, ...]:
    """Prompts of the calibration set beyond those that are calibrated on."""
    chosen, count = recipe.calibrate, recipe.search.prompts
    return load_prompts(chosen.prompt_set, chosen.prompts + count, chosen.seed)[-count:]


def _with_prompts(judging: Judging, prompts: tuple[Prompt, ...]) -> Judging:
    checker = speaks_of_scenes([one.text for one in prompts])
    return replace(
        judging, prompts=prompts, instruments=replace(judging.instruments, checker=checker)
    )
