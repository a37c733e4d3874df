"""The report as plain JSON types, schema 1; `report.schema.json` beside this file describes it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sdcompress.evaluate.records import (
    TURN_FIGURES,
    BudgetResult,
    Change,
    ComponentSize,
    Evaluation,
    MetricResult,
    Quality,
    Sample,
    Side,
)

SCHEMA = 1
SCHEMA_FILE = Path(__file__).with_name("report.schema.json")


def build_document(
    folder: Path,
    status: str,
    recipe: Mapping[str, Any],
    model: Mapping[str, Any],
    environment: Mapping[str, Any],
    components: Mapping[str, ComponentSize],
    evaluation: Evaluation,
    budgets: Sequence[BudgetResult],
) -> dict[str, Any]:
    """Returns the report; sample pictures are named relative to `folder`."""
    performance = evaluation.performance
    return {
        "schema": SCHEMA,
        "status": status,
        "recipe": dict(recipe),
        "model": dict(model),
        "environment": dict(environment),
        "components": {name: _component(size) for name, size in components.items()},
        "quality": _quality(evaluation.quality),
        "performance": {
            "baseline": _side(performance.baseline),
            "compressed": _side(performance.candidate),
            "ratios": {name: asdict(one) for name, one in performance.ratios.items()},
        },
        "budgets": [asdict(budget) | {"passed": budget.passed} for budget in budgets],
        "samples": [_sample(folder, sample) for sample in evaluation.samples],
    }


def _component(size: ComponentSize) -> dict[str, Any]:
    return {
        "method": size.method,
        "baseline_bytes": size.baseline_bytes,
        "compressed_bytes": size.candidate_bytes,
        "layers_by_precision": dict(size.layers_by_precision),
    }


def _quality(quality: Quality) -> dict[str, Any]:
    clip = quality.of("clip_score")
    change = clip.change
    return {
        "clip_score": {
            "baseline": change.baseline,
            "compressed": change.candidate,
            "difference": change.value.value,
            "ci95": [change.value.low, change.value.high],
            "samples": change.samples,
            "scorer": clip.metric.made_by,
        },
        "psnr_db": _likeness(quality.of("psnr_db")),
        "ssim": _likeness(quality.of("ssim")),
        "unet_sqnr_db": _by_timestep(quality.sqnr.unet_db),
        "unet_sqnr_floor_db": _by_timestep(quality.sqnr.unet_floor_db),
        "latents_sqnr_db": _by_timestep(quality.sqnr.latents_db),
        "latents_sqnr_floor_db": _by_timestep(quality.sqnr.latents_floor_db),
        "decoder_ssim": list(quality.sqnr.decoder_ssim),
        "layer_errors": asdict(quality.layer_errors),
        "metrics": [_metric(result) for result in quality.metrics],
        "skipped": [asdict(one) for one in quality.skipped],
        "yardsticks": dict(quality.yardsticks),
        "looks": [asdict(one) for one in quality.looks],
    }


def _likeness(result: MetricResult) -> dict[str, Any]:
    return {"mean": result.change.value.value, "min": result.change.worst}


def _metric(result: MetricResult) -> dict[str, Any]:
    yardsticks = {name: _change(one) for name, one in result.yardsticks.items()}
    return asdict(result.metric) | _change(result.change) | {"yardsticks": yardsticks}


def _change(change: Change) -> dict[str, Any]:
    interval = None
    if change.value.low is not None:
        interval = [change.value.low, change.value.high]
    return {
        "baseline": change.baseline,
        "compressed": change.candidate,
        "value": change.value.value,
        "ci95": interval,
        "worst": change.worst,
        "samples": change.samples,
    }


def _by_timestep(values: Mapping[int, float]) -> dict[str, float]:
    return {str(timestep): db for timestep, db in values.items()}


def _side(side: Side) -> dict[str, Any]:
    """Medians under the figures' names, and their spreads together."""
    spreads = {name: getattr(side, name) for name in TURN_FIGURES}
    return {
        **{name: _whole(name, one.median) for name, one in spreads.items()},
        "disk_bytes": side.disk_bytes,
        "least_memory_bytes": side.least_memory_bytes,
        "loaded_at": round(side.loaded_at, 3),
        "parts_seconds": dict(side.parts_seconds),
        "spread": {
            name: [_whole(name, one.low), _whole(name, one.high)] for name, one in spreads.items()
        },
        "memory": [
            [round(one.seconds, 3), one.anonymous_bytes, one.file_bytes] for one in side.memory
        ],
    }


def _whole(name: str, value: float) -> float | int:
    return int(value) if name.endswith("_bytes") else value


def _sample(folder: Path, sample: Sample) -> dict[str, Any]:
    return {
        "prompt": sample.prompt,
        "negative_prompt": sample.negative_prompt,
        "category": sample.category,
        "seed": sample.seed,
        "baseline": sample.baseline.relative_to(folder).as_posix(),
        "compressed": sample.candidate.relative_to(folder).as_posix(),
        "scores": {
            name: {"baseline": before, "compressed": after}
            for name, (before, after) in sample.scores.items()
        },
        "likeness": dict(sample.likeness),
    }
