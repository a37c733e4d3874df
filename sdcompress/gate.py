"""The gate: judges an evaluation by the recipe's budgets. Nothing passes by default."""

from collections.abc import Callable, Mapping, Sequence

from sdcompress.evaluate.acceptance import decide
from sdcompress.evaluate.records import (
    BudgetResult,
    Change,
    ComponentSize,
    Estimate,
    Evaluation,
    Look,
    Outcome,
    Sqnr,
)
from sdcompress.recipe import Budgets

Components = Mapping[str, ComponentSize]


def judge(
    budgets: Budgets, evaluation: Evaluation, components: Components
) -> tuple[BudgetResult, ...]:
    """Compares every budget that the recipe sets with what was measured.

    An estimate from pictures passes or fails only with its whole 95 % interval, so a small sample
    that proves little does not pass by luck; it is undecided. A value that is not finite fails.
    """
    results = []
    for name, limit in budgets:
        if limit is None:
            continue
        if name in JUDGED_BY:
            quality = evaluation.quality
            change = quality.of(JUDGED_BY[name]).change
            results.append(_judge_change(name, limit, change, quality.looks))
        else:
            kind, read = _MEASURED[name]
            results.append(_judge_value(name, kind, limit, read(evaluation, components)))
    return tuple(results)


def status_of(budgets: Sequence[BudgetResult]) -> Outcome:
    """The verdict of all budgets: one that is broken fails, one that is open leaves it open."""
    outcomes = {budget.outcome for budget in budgets}
    if "failed" in outcomes:
        return "failed"
    return "undecided" if "undecided" in outcomes else "passed"


def judge_pictures(budgets: Budgets, changes: Mapping[str, Change]) -> tuple[BudgetResult, ...]:
    """Compares only the budgets of pictures with changes, by the metrics' names."""
    return tuple(
        _judge_change(name, limit, changes[JUDGED_BY[name]], ())
        for name, limit in budgets.of_pictures.items()
    )


def judge_network(budgets: Budgets, sqnr: Sqnr) -> tuple[BudgetResult, ...]:
    """Compares only the budget of the UNet's own error, if it is set."""
    name, limit = "unet_sqnr_min_db", budgets.unet_sqnr_min_db
    return () if limit is None else (_judge_value(name, "min", limit, sqnr.least_unet_db),)


def _judge_change(
    name: str, limit: float, change: Change, all_looks: Sequence[Look]
) -> BudgetResult:
    """A mean over the pairs; for the CLIP score the drop, baseline - candidate."""
    found, samples = change.value, change.samples
    looks = [one for one in all_looks if one.budget == name]
    if looks:
        found = Estimate(looks[-1].mean, looks[-1].low, looks[-1].high)
    low, high = _interval(found)
    decision = decide(found.value, low, high, samples, least_mean(name, limit))
    outcome, more = decision.outcome, decision.more
    if name in _DROPS:
        return BudgetResult(name, limit, -found.value, -high, -low, outcome, more, "max")
    return BudgetResult(name, limit, found.value, low, high, outcome, more, "min")


def least_mean(name: str, limit: float) -> float:
    """The least mean that keeps to a picture budget: a drop is a negative difference."""
    return -limit if name in _DROPS else limit


def _judge_value(name: str, kind: str, limit: float, value: float) -> BudgetResult:
    # NaN compares false either way, so it fails.
    passed = value <= limit if kind == "max" else value >= limit
    outcome: Outcome = "passed" if passed else "failed"
    return BudgetResult(name, limit, value, None, None, outcome, None, kind)


def _interval(estimate: Estimate) -> tuple[float, float]:
    if estimate.low is None or estimate.high is None:
        raise ValueError("a budget is judged by an interval, and this estimate has none")
    return estimate.low, estimate.high


def _disk_ratio(evaluation: Evaluation, _: Components) -> float:
    measured = evaluation.performance
    return measured.candidate.disk_bytes / measured.baseline.disk_bytes


def _ratio(name: str) -> Callable[[Evaluation, Components], float]:
    return lambda evaluation, _: evaluation.performance.ratios[name].median


def _speedup(name: str) -> Callable[[Evaluation, Components], float]:
    return lambda evaluation, _: 1 / evaluation.performance.ratios[name].median


_DROPS = ("clip_score_drop",)
JUDGED_BY = {  # the metric of each budget that is estimated from pictures
    "clip_score_drop": "clip_score",
    "psnr_min_db": "psnr_db",
    "ssim_min": "ssim",
    "clip_similarity_min": "clip_similarity",
}
_MEASURED: dict[str, tuple[str, Callable[[Evaluation, Components], float]]] = {
    "unet_sqnr_min_db": ("min", lambda e, _: e.quality.sqnr.least_unet_db),
    "decoder_ssim_min": ("min", lambda e, _: min(e.quality.sqnr.decoder_ssim)),
    "unet_bytes_ratio": (
        "max",
        lambda _, c: c["unet"].candidate_bytes / c["unet"].baseline_bytes,
    ),
    "disk_ratio": ("max", _disk_ratio),
    "peak_memory_ratio": ("max", _ratio("peak_rss_bytes")),
    "step_speedup_min": ("min", _speedup("unet_step_seconds")),
    "image_speedup_min": ("min", _speedup("image_seconds")),
}
