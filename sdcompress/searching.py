"""Finds the strongest compression of the UNet that still passes the gate, and writes its recipe.

Every group of layers is measured in every variant: its error on recorded calls, its time and bytes
on the device. A solver chooses, the choices are built, drawn with and ranked, and the best is made
and evaluated as any recipe is, on prompts that had no part in the search.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sdcompress.bundle import publish, require_replaceable
from sdcompress.candidates import Contest, Proposal
from sdcompress.errors import InputError, QualityGateFailed, QualityUndecided
from sdcompress.evaluate.checker import speaks_of_scenes
from sdcompress.isolation import run_isolated
from sdcompress.judging import Judging, find_judging
from sdcompress.line import Line, find_material
from sdcompress.methods import COMPONENTS, PLAIN, Int8, Method
from sdcompress.opening import look_ahead, production_line
from sdcompress.preflight import SEARCH_STAGES, STAGES, estimate_search
from sdcompress.processor import described_target
from sdcompress.progress import Progress, SilentProgress
from sdcompress.prompts import Prompt, draw_prompts, read_prompts
from sdcompress.recipe import Recipe
from sdcompress.report.search_page import FIGURES, PAGE, write_search
from sdcompress.runtime import NotFiniteError
from sdcompress.search.records import Candidate, Hunt
from sdcompress.search.sensitivity import decibels
from sdcompress.search.solver import Choice, Limits, ladder, least_of_each
from sdcompress.search.writing import (
    RECIPE_SUFFIX,
    as_method,
    found_recipe,
    recipe_file,
    write_recipe,
)
from sdcompress.survey import Survey
from sdcompress.verdict import REPORT_IS_IN, Run
from sdcompress.workflow import quantize

OWN = "as the recipe says"
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

    Writes search.html, search.json and the recipe that was found, <recipe name>_search, to
    `output`, by default build/<recipe name>-search; its bundle goes to a folder beside it, called
    so with -bundle behind. What is measured is kept and not measured again; `fresh` measures all
    anew but the evaluation of what was found. Raises PreflightError as `quantize` does, InputError
    when no choice keeps to the limits, and QualityGateFailed or QualityUndecided when none of the
    candidates passes; `output` then has no recipe.
    """
    shown = progress or SilentProgress()
    target = Path(output or Path("build") / f"{recipe.name}-search").resolve()
    bundle = _bundle_folder(target)
    staged = _staged(recipe)
    material = find_material(staged, shown)
    prompts = _prompts(staged)
    judging = find_judging(staged, (*material.calibration_prompts, *prompts))
    with production_line(staged, target, material, shown, fresh=fresh) as line:
        look_ahead(
            line,
            target,
            {*STAGES, *SEARCH_STAGES} - _finished(recipe, line),
            refuse=not ignore_preflight,
            expect=lambda _, *known: estimate_search(recipe, *known),
        )
        hunt = _hunt(recipe, line, _with_prompts(judging, prompts))
        page = _Page(recipe, hunt, line.store.scratch / "result", target)
        page.publish("The candidates are yet to be evaluated.")
        shutil.rmtree(bundle, ignore_errors=True)  # of a search whose page this one replaces
        try:
            chosen, run, refused = _confirmed(
                recipe, hunt, bundle, shown, ignore_preflight=ignore_preflight
            )
        except (QualityGateFailed, QualityUndecided) as refusal:
            page.publish("No candidate passed.")
            raise type(refusal)(f"{refusal}\nAll figures are in {target / PAGE}") from None
        before = f" {refused} evaluated before it did not, on the same prompts." if refused else ""
        page.publish(f"{chosen.name} passed the gate.{before}", chosen)
    return Found(target, hunt, chosen, target / recipe_file(recipe), run)


@dataclass(frozen=True)
class _Page:
    """What `folder` tells of a search; it is put together in `scratch`."""

    recipe: Recipe
    hunt: Hunt
    scratch: Path
    folder: Path

    def publish(self, verdict: str, chosen: Candidate | None = None) -> None:
        """Replaces what lies there, by a page that says how it stands, with the recipe found."""
        self.scratch.mkdir()
        write_search(self.scratch, self.recipe, self.hunt, verdict)
        if chosen:
            file = self.scratch / recipe_file(self.recipe)
            write_recipe(self.recipe, self.hunt, chosen, file)
        publish(self.scratch, self.folder)


def _hunt(recipe: Recipe, line: Line, judging: Judging) -> Hunt:
    """Measures, chooses, builds, draws and ranks."""
    survey = Survey(recipe, line, judging)
    contest, proposals = Contest(line, judging, survey), _proposals(survey)
    found = [contest.drawn(Proposal(OWN, recipe.compress.unet))]

    def attempt(place: int) -> bool:
        found.append(contest.drawn(replace(proposals[place], name=f"choice {len(found)}")))
        return found[-1].outcome != "failed"

    close_in(len(proposals), recipe.search.candidates, attempt)
    return Hunt(
        survey.groups,
        dict(survey.sensitivities),
        dict(survey.costs),
        survey.options,
        contest.ranked(found),
        described_target(recipe.execution_precision),
    )


def _proposals(survey: Survey) -> list[Proposal]:
    """The solver's choices from the cheapest on, without the recipe's own method."""
    recipe, found = survey.recipe, list[Proposal]()
    known: list[Method] = [recipe.compress.unet]
    for choice in _choices(survey):
        method = as_method(choice, survey.groups, recipe.search.variants)
        if method not in known:
            known.append(method)
            found.append(Proposal("", method, choice))
    return found


def _choices(survey: Survey) -> list[Choice]:
    """The solver's, from the cheapest on."""
    wanted, progress = survey.recipe.search, survey.line.progress
    limits = survey.limits()
    _require_reachable(survey, limits)
    options = survey.options
    with progress.stage("solve", f"least {wanted.objective}") as advance:
        # Apart, for the solver prints.
        found = run_isolated(ladder, options, wanted.objective, limits, on_progress=advance)
    if not found or {one.variant for one in options} == {PLAIN}:
        raise InputError(
            f"recipe {survey.recipe.name}: of search.variants, all that keeps to the limits of "
            "search and budgets overflows: add gentler ones, or raise limits"
        )
    found = [one for one in found if set(one.values()) != {PLAIN}]
    if not found:
        raise InputError(
            f"recipe {survey.recipe.name}: by {wanted.objective}, none of search.variants costs "
            "less than 16 bits in any group: choose another search.objective, or other variants"
        )
    return found


def _require_reachable(survey: Survey, limits: Limits) -> None:
    """Raises InputError that tells what could be asked for, when no choice keeps to the limits."""
    with survey.line.progress.stage("solve", "limits") as advance:
        least = run_isolated(least_of_each, survey.exact_options, limits, on_progress=advance)
    if least is None:
        return
    told = "; ".join(survey.reachable(least))
    others = ", each while the others are kept where they can be" if len(least) > 1 else ""
    raise InputError(
        f"recipe {survey.recipe.name}: no choice of search.variants keeps to the limits. {told}"
        f"{others}: raise them, or add variants"
    )


def close_in(count: int, most: int, attempt: Callable[[int], bool]) -> None:
    """Tries the first of so many places, then halves the rest for the first that succeeds.

    Of two tries and more the last, and what else is left of them, go evenly to places behind it,
    the last one among them, for what succeeds here may fail later on.
    """
    low, high = -1, count
    tried: list[int] = []
    while len(tried) < max(1, most - 1) and high - low > 1:
        tried.append((low + high) // 2 if tried else 0)
        low, high = (low, tried[-1]) if attempt(tried[-1]) else (tried[-1], high)
    start = high if high < count else low
    behind = [place for place in range(start + 1, count) if place not in tried]
    left = min(most - len(tried), len(behind))
    for part in range(left):
        attempt(behind[(part + 1) * len(behind) // left - 1])


def _confirmed(
    recipe: Recipe, hunt: Hunt, bundle: Path, progress: Progress, *, ignore_preflight: bool
) -> tuple[Candidate, Run, int]:
    """Tries candidates in their order on the held-out prompts, until one passes.

    Also tells how many did not. Of those that broke budgets in the search only the last, the
    solver's if there is one, where no other is left.
    """
    within = [one for one in hunt.candidates if not one.excess and one.method.method != PLAIN]
    promising = [one for one in within if one.outcome != "failed"]
    last = ([one for one in within if one.choice] or within)[-1:]
    refusals: list[tuple[Candidate, _Refusal]] = []
    for candidate in promising or last:
        progress.notice(f"evaluating {candidate.name} on prompts that had no part in the search")
        try:
            chosen = found_recipe(recipe, candidate)
            run = _evaluated(chosen, bundle, progress, ignore_preflight=ignore_preflight)
        except (QualityGateFailed, QualityUndecided) as refusal:
            progress.notice(f"{candidate.name} did not pass:\n{refusal}")
            refusals.append((candidate, refusal))
        else:
            return candidate, run, len(refusals)
    raise _in_the_way(hunt, refusals)


def _evaluated(recipe: Recipe, bundle: Path, progress: Progress, *, ignore_preflight: bool) -> Run:
    """Makes and judges what a recipe says; what overflows does not pass the gate."""
    try:
        return quantize(recipe, bundle, ignore_preflight=ignore_preflight, progress=progress)
    except NotFiniteError as overflow:
        raise QualityGateFailed(f"it overflows: {overflow}") from overflow


def _in_the_way(hunt: Hunt, refusals: Sequence[tuple[Candidate, _Refusal]]) -> _Refusal:
    """What the last one was refused for, whose report is left, and which groups are behind it.

    Undecided when more pictures could let any of them pass.
    """
    tried = {candidate.name for candidate, _ in refusals}
    others = [
        f"  {one.name}: {'; '.join(one.excess or [_failure(one)])}"
        for one in hunt.candidates
        if one.name not in tried and (one.excess or one.outcome == "failed")
    ]
    if not refusals:
        return QualityGateFailed(
            "no candidate keeps to the limits, as measured:\n"
            + "\n".join(others)
            + "\nAsk for a little less than you need, for groups do not add up exactly, or add "
            "search.variants"
        )
    last, refusal = refusals[-1]
    before = [f"  {one.name}: {_shortly(why)}" for one, why in refusals[:-1]]
    message = [
        f"no candidate passes the gate; the last that was evaluated, {last.name}:",
        str(refusal),
        *(["Evaluated before:", *before] if before else []),
        *_blamed(hunt, [candidate for candidate, _ in refusals]),
        *(["Not evaluated:", *others] if others else []),
        "For pictures, ask for more search.candidates or add gentler search.variants; for bytes or "
        "time, add stronger ones",
    ]
    undecided = any(isinstance(why, QualityUndecided) for _, why in refusals)
    return (QualityUndecided if undecided else QualityGateFailed)("\n".join(message))


def _shortly(refusal: _Refusal) -> str:
    """In one line, without its report, which another one's has replaced."""
    lines = str(refusal).splitlines()
    return "; ".join(line for line in lines if not line.startswith(REPORT_IS_IN))


def _failure(candidate: Candidate) -> str:
    return "broke budgets on the prompts of the search" if candidate.figures else "overflows"


def _blamed(hunt: Hunt, refused: Sequence[Candidate]) -> Iterator[str]:
    """Yields lines about the groups of the solver's last that was refused, or else drawn with."""
    known = (*reversed(refused), *reversed(hunt.candidates))
    last = next((one for one in known if one.choice), None)
    offenders = [] if last is None else hunt.offenders(last)
    if last is None or not offenders:
        return
    yield (
        f"Groups that add most to the error of {last.name} (SQNR expected with one alone; CLIP's "
        "view of it):"
    )
    for one in offenders:
        yield (
            f"  {one.group:<32} as {one.variant:<10} {decibels(one.noise):>6.1f} dB"
            f"   content {one.content:.4f}"
        )


def _finished(recipe: Recipe, line: Line) -> set[str]:
    """The names of the stages that are done: compression when it is by every variant."""
    keys = [
        *(line.key_of_method("unet", one) for one in recipe.search.variants.values()),
        line.key_of_method("unet", recipe.compress.unet),
        *(line.compressed_key(one) for one in COMPONENTS if one != "unet"),
    ]
    done = line.finished() - {"compress"}
    return done | ({"compress"} if all(line.store.has("compress", key) for key in keys) else set())


def _bundle_folder(target: Path) -> Path:
    """Where the bundle of what is found goes. Raises InputError for what cannot be written."""
    if not target.name or target == Path.cwd():
        raise InputError(f"{target} is the current or the topmost folder; choose another --output")
    if target.is_file():
        raise InputError(f"{target} is a file; --output must be a folder")
    found = [one.name for one in target.iterdir()] if target.is_dir() else []
    foreign = {one for one in found if not one.endswith(RECIPE_SUFFIX)} - {PAGE, FIGURES}
    if foreign:
        raise InputError(
            f"{target} holds {min(foreign)}, which a search did not write and would delete; "
            "choose another --output"
        )
    bundle = target.with_name(f"{target.name}-bundle")
    require_replaceable(bundle)
    return bundle


def _staged(recipe: Recipe) -> Recipe:
    """The recipe with a method for the UNet that asks for all that its own and the variants need.

    Inputs are recorded in any case, for groups are judged by them.
    """
    wanted = recipe.search
    made: tuple[Method, ...] = (*wanted.variants.values(), recipe.compress.unet)
    calibrated = [one for one in made if one.needs_statistics]
    calibrated += [one for one in made if one.is_calibrated]
    calibrated.append(Int8(method="int8"))
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
    there = read_prompts(chosen.prompt_set)
    if len(there) < chosen.prompts + count:
        raise InputError(
            f"recipe {recipe.name}: search.prompts asks for {count} prompts beside the "
            f"{chosen.prompts} that are calibrated on, and {chosen.prompt_set} has {len(there)}: "
            "lower either of search.prompts and calibrate.prompts, or name a larger set"
        )
    return draw_prompts(chosen.prompt_set, there, chosen.prompts + count, chosen.seed)[-count:]


def _with_prompts(judging: Judging, prompts: tuple[Prompt, ...]) -> Judging:
    checker = speaks_of_scenes([one.text for one in prompts])
    return replace(
        judging, prompts=prompts, instruments=replace(judging.instruments, checker=checker)
    )
