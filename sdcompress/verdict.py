"""From a finished pipeline to a verdict: evaluates it, applies the gate and writes the report."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sdcompress.bundle import REPORT
from sdcompress.errors import QualityGateFailed, QualityUndecided
from sdcompress.evaluate.records import BudgetResult, ComponentSize, Evaluation
from sdcompress.gate import judge, status_of
from sdcompress.identity import COMPRESSED
from sdcompress.ir import IR_NAME
from sdcompress.precision import layers_of
from sdcompress.report import write_report
from sdcompress.trial import Trial
from sdcompress.ways import Folders

REPORT_IS_IN = "The report is in"


@dataclass(frozen=True)
class Run:
    """What a run wrote. `bundle` is None when there is a report only."""

    output: Path
    report: Path
    bundle: Path | None
    evaluation: Evaluation
    components: Mapping[str, ComponentSize]
    budgets: tuple[BudgetResult, ...]
    available_prompts: int

    @property
    def passed(self) -> bool:
        return status_of(self.budgets) == "passed"


def reach_verdict(
    trial: Trial,
    folders: Folders,
    sizes: Mapping[str, ComponentSize],
    model: Mapping[str, Any],
    result: Path,
    target: Path,
) -> Run:
    """Evaluates, judges and writes the report into `result`, which will be moved to `target`."""
    report = result / REPORT
    report.mkdir()
    evaluation = trial.evaluated(folders, report)
    _write_layers(folders[COMPRESSED], sizes, report / "layers.json")
    budgets = judge(trial.recipe.budgets, evaluation, sizes)
    with trial.progress.stage("report", "json, markdown, html") as advance:
        write_report(
            report,
            status=status_of(budgets),
            recipe=trial.recipe.as_dict(),
            model=model,
            device=trial.recipe.device,
            components=sizes,
            evaluation=evaluation,
            budgets=budgets,
            stages=trial.store.log,
        )
        advance(1, 1)
    passed = status_of(budgets) == "passed"
    published = _moved(evaluation, report, target / REPORT)
    return Run(
        target,
        target / REPORT,
        target if passed else None,
        published,
        sizes,
        budgets,
        trial.judging.available,
    )


def require_passed(run: Run) -> None:
    """Raises QualityGateFailed when a budget is broken, QualityUndecided when one is open."""
    status = status_of(run.budgets)
    if status == "failed":
        raise QualityGateFailed(_refusal(run))
    if status == "undecided":
        raise QualityUndecided(_open_question(run))


def quality_summary(evaluation: Evaluation) -> dict[str, object]:
    """What the manifest tells of the quality: every metric's mean with its interval."""
    return {
        result.metric.name: {
            **asdict(result.change.value),
            "samples": result.change.samples,
            "made_by": result.metric.made_by,
        }
        for result in evaluation.quality.metrics
    }


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


def _write_layers(candidate: Path, sizes: Mapping[str, ComponentSize], file: Path) -> None:
    layers = {
        component: [asdict(layer) for layer in layers_of(candidate / component / IR_NAME)]
        for component in sizes
    }
    file.write_text(json.dumps(layers, indent=1) + "\n", encoding="utf-8")


def _refusal(run: Run) -> str:
    broken = [budget for budget in run.budgets if budget.outcome == "failed"]
    rows = [
        f"  {_measured(budget)}   off by {abs(budget.value - budget.limit):.4g}"
        for budget in broken
    ]
    return (
        f"{len(broken)} of {len(run.budgets)} budgets are broken, so there is no bundle:\n"
        + "\n".join(rows)
        + f"\n{REPORT_IS_IN} {run.report}"
    )


def _open_question(run: Run) -> str:
    unclear = [budget for budget in run.budgets if budget.outcome == "undecided"]
    rows = []
    for budget in unclear:
        more = (
            f"about {budget.more} more pictures would decide"
            if budget.more
            else ("the value lies so close to the limit that no number of pictures would decide")
        )
        rows.append(f"  {_measured(budget)}   {more}")
    samples = len(run.evaluation.samples)
    return (
        f"{samples} pictures do not decide {len(unclear)} of {len(run.budgets)} budgets, so there "
        "is no bundle:\n"
        + "\n".join(rows)
        + f"\n{_advice(run, samples, [budget.more for budget in unclear])}"
        f"{REPORT_IS_IN} {run.report}"
    )


def _advice(run: Run, samples: int, more: Sequence[int | None]) -> str:
    """How to come to a decision, where more pictures would bring one."""
    if None in more:
        return ""
    wanted = samples + max(one for one in more if one is not None)
    if wanted <= run.available_prompts:
        return f"Draw more with --set evaluate.prompts={wanted}; those already drawn are kept. "
    return (
        f"The prompt set has {run.available_prompts} prompts: name one with {wanted} or more, "
        f"--set evaluate.prompt_set=FILE --set evaluate.prompts={wanted}. "
    )


def _measured(budget: BudgetResult) -> str:
    side = "at most" if budget.kind == "max" else "at least"
    interval = ""
    if budget.low is not None and budget.high is not None:
        interval = f" (95 %: {budget.low:.4g} to {budget.high:.4g})"
    return f"{budget.name:<20} {budget.value:>10.4g}{interval}   {side} {budget.limit:<8g}"
