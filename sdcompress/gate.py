"""The gate: judges an evaluation by the recipe's budgets. Nothing passes by default."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from sdcompress.evaluate.records import BudgetResult, ComponentSize, Evaluation
from sdcompress.recipe import Budgets

Components = Mapping[str, ComponentSize]


class _Rule(NamedTuple):
    kind: str
    value: Callable[[Evaluation, Components], float]


def judge(
    budgets: Budgets, evaluation: Evaluation, components: Components
) -> tuple[BudgetResult, ...]:
    """Compares every budget that the recipe sets with what was measured.

    `clip_score_drop` is judged at the upper 95 % bound of the paired drop, so a small sample that
    proves little does not pass by luck. A value that is not finite fails.
    """
    results = []
    for name, rule in _RULES.items():
        limit = getattr(budgets, name)
        if limit is None:
            continue
        value = rule.value(evaluation, components)
        # NaN compares false either way, so it fails.
        passed = value <= limit if rule.kind == "max" else value >= limit
        results.append(BudgetResult(name, limit, value, passed, rule.kind))
    return tuple(results)


def _disk_ratio(evaluation: Evaluation, _: Components) -> float:
    measured = evaluation.performance
    return measured.candidate.disk_bytes / measured.baseline.disk_bytes


def _peak_memory_ratio(evaluation: Evaluation, _: Components) -> float:
    measured = evaluation.performance
    return measured.candidate.peak_rss_bytes / measured.baseline.peak_rss_bytes


def _step_speedup(evaluation: Evaluation, _: Components) -> float:
    measured = evaluation.performance
    return measured.baseline.unet_step_seconds / measured.candidate.unet_step_seconds


def _image_speedup(evaluation: Evaluation, _: Components) -> float:
    measured = evaluation.performance
    return measured.baseline.image_seconds / measured.candidate.image_seconds


_RULES = {
    "clip_score_drop": _Rule("max", lambda e, _: -e.quality.clip_score.difference.low),
    "psnr_min_db": _Rule("min", lambda e, _: e.quality.psnr_db.mean),
    "ssim_min": _Rule("min", lambda e, _: e.quality.ssim.mean),
    "unet_sqnr_min_db": _Rule("min", lambda e, _: min(e.quality.unet_sqnr.candidate_db.values())),
    "unet_bytes_ratio": _Rule(
        "max", lambda _, c: c["unet"].candidate_bytes / c["unet"].baseline_bytes
    ),
    "disk_ratio": _Rule("max", _disk_ratio),
    "peak_memory_ratio": _Rule("max", _peak_memory_ratio),
    "step_speedup_min": _Rule("min", _step_speedup),
    "image_speedup_min": _Rule("min", _image_speedup),
}
