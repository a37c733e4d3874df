"""Builds what a search chose, times it, draws with it and ranks it."""

import gc
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sdcompress.bundle import assemble
from sdcompress.evaluate.comparing import changes
from sdcompress.evaluate.records import Change, Sqnr
from sdcompress.gate import judge_network, judge_pictures, status_of
from sdcompress.identity import BASELINE, COMPRESSED
from sdcompress.ir import IR_NAME, ir_bytes
from sdcompress.judging import Judging
from sdcompress.line import Line
from sdcompress.methods import PLAIN, Method
from sdcompress.recipe import Recipe
from sdcompress.report.comparison import dominates
from sdcompress.runtime import NotFiniteError
from sdcompress.search.records import Candidate
from sdcompress.search.solver import Choice, total
from sdcompress.survey import Survey
from sdcompress.trial import Trial
from sdcompress.ways import Folders


@dataclass(frozen=True)
class Proposal:
    """A method for the UNet; `choice` is None where the solver did not make it."""

    name: str
    method: Method
    choice: Choice | None = None


@dataclass(frozen=True)
class Contest:
    """Candidates on one line; `judging` has the prompts that they are drawn with."""

    line: Line
    judging: Judging
    survey: Survey

    def ranked(self, candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
        """All of them, timed in turn, in the order in which they should be tried.

        Those that keep to the search's limits come first, of these those that broke no budget, then
        the least cost.
        """
        search = self.survey.recipe.search
        folders = {one.name: self._folder(one.method) for one in candidates}
        models = {name: folder / IR_NAME for name, folder in folders.items()}
        costs = self.survey.cost_of(models, "of every candidate")
        found = []
        for one in candidates:
            timed = replace(
                one,
                call_seconds=costs[one.name].seconds,
                call_ratio=costs[one.name].seconds / costs[PLAIN].seconds,
                stored_bytes=ir_bytes(folders[one.name]),
                executed_bytes=costs[one.name].executed_bytes,
            )
            over = excess(self.survey.recipe, timed, self.survey.file_bytes)
            found.append(replace(timed, excess=tuple(over)))

        def rank(one: Candidate) -> tuple[bool, bool, float]:
            return bool(one.excess), one.outcome == "failed", one.cost(search.objective)

        return tuple(sorted(_with_front(found, search.objective), key=rank))

    def _folder(self, method: Method) -> Path:
        return self.line.compressed_by("unet", method).folder

    def drawn(self, proposal: Proposal) -> Candidate:
        """A candidate with what was expected of it, and what its pictures and its UNet tell.

        One that overflows has no figures and has failed.
        """
        choice, options = proposal.choice, self.survey.options
        recipe = self._recipe_of(proposal)
        line = replace(self.line, recipe=recipe)
        compressed = {component: ir.folder for component, ir in line.compressed().items()}
        folder = line.store.scratch / proposal.name.replace(" ", "_")
        assemble(line.converted, compressed, folder, tiny_decoder=line.tiny_decoder)
        trial = Trial(recipe, line.store, line.progress, line.run, self.judging, line.keys())
        found = Candidate(
            name=proposal.name,
            method=proposal.method,
            figures={},
            samples=len(self.judging.prompts),
            outcome="failed",
            choice=choice,
            expected_noise=total(options, choice, "noise") if choice else None,
            expected_content=total(options, choice, "content") if choice else None,
        )
        try:
            changed, sqnr = self._judged(trial, {BASELINE: line.converted, COMPRESSED: folder})
        except NotFiniteError as overflow:
            line.progress.notice(f"{proposal.name} overflows: {overflow}")
            return found
        finally:
            gc.collect()  # unmaps IR files, which Windows cannot delete while they are open
            shutil.rmtree(folder, ignore_errors=True)  # a large one's copies would fill the disk
        budgets = judge_pictures(recipe.budgets, changed)
        if sqnr is not None:
            budgets += judge_network(recipe.budgets, sqnr)
        return replace(
            found,
            figures={metric: change.value for metric, change in changed.items()},
            outcome=status_of(budgets) if budgets else None,
            least_unet_db=sqnr.least_unet_db if sqnr else None,
        )

    def _recipe_of(self, proposal: Proposal) -> Recipe:
        """Its SQNR is taken on as many prompts as those of the groups were."""
        recipe = self.line.recipe.with_unet(proposal.method)
        few = recipe.evaluate.model_copy(update={"sqnr_prompts": recipe.search.trajectories})
        return recipe.model_copy(update={"evaluate": few})

    def _judged(self, trial: Trial, folders: Folders) -> tuple[Mapping[str, Change], Sqnr | None]:
        """Changes of the pictures by metric, and, where a budget asks for it, the UNet's SQNR."""
        both = trial.ways(len(self.judging.prompts))
        ways = {side: both[side] for side in (BASELINE, COMPRESSED)}
        pictures = {side: trial.draw(way, folders) for side, way in ways.items()}
        seen, likeness = trial.score(ways, pictures)
        instruments = self.judging.instruments
        metrics = instruments.picture_metrics()
        told = changes(instruments, metrics, seen[BASELINE], seen[COMPRESSED], likeness[COMPRESSED])
        wanted = trial.recipe.budgets.unet_sqnr_min_db is not None
        sqnr = trial.sqnr(ways, folders) if wanted else None
        return {metric.name: change for metric, change in told}, sqnr


def excess(recipe: Recipe, candidate: Candidate, file_bytes: int) -> Iterator[str]:
    """Which limits of the search, or of the file, a candidate does not keep to, as measured.

    `file_bytes` are those of the baseline's UNet.
    """
    limits, ratio = recipe.search, candidate.stored_bytes / file_bytes
    for name, limit, value in (
        ("search.latency_ratio_max", limits.latency_ratio_max, candidate.call_ratio),
        ("budgets.unet_bytes_ratio", recipe.budgets.unet_bytes_ratio, ratio),
    ):
        if limit is not None and value > limit:
            yield f"{value:.4g} instead of {name} {limit:g}"
    for name, text, most, size in (
        ("search.size_max", limits.size_max, limits.size_bytes, candidate.stored_bytes),
        ("search.memory_max", limits.memory_max, limits.memory_bytes, candidate.executed_bytes),
    ):
        if most is not None and size > most:
            yield f"{size / 1e6:.4g} MB instead of {name} {text}"


def _with_front(candidates: Sequence[Candidate], objective: str) -> Iterator[Candidate]:
    places = {
        one.name: (one.figures["clip_score"].value, one.cost(objective))
        for one in candidates
        if one.figures
    }
    for one in candidates:
        place = places.get(one.name)
        beaten = place is None or any(dominates(other, place) for other in places.values())
        yield replace(one, on_front=not beaten)
