"""The report as plain JSON types, schema 1; `report.schema.json` beside this file describes it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sdcompress.evaluate.records import BudgetResult, ComponentSize, Evaluation

SCHEMA = 1
SCHEMA_FILE = Path(__file__).with_name("report.schema.json")


def build_document(
    folder: Path,
    recipe: Mapping[str, Any],
    model: Mapping[str, Any],
    environment: Mapping[str, Any],
    components: Mapping[str, ComponentSize],
    evaluation: Evaluation,
    budgets: Sequence[BudgetResult],
) -> dict[str, Any]:
    """Returns the report; sample pictures are named relative to `folder`."""
    return {
        "schema": SCHEMA,
        "status": "passed" if all(budget.passed for budget in budgets) else "failed",
        "recipe": dict(recipe),
        "model": dict(model),
        "environment": dict(environment),
        "components": {name: _component(size) for name, size in components.items()},
        "quality": _quality(evaluation),
        "performance": {
            "baseline": asdict(evaluation.performance.baseline),
            "compressed": asdict(evaluation.performance.candidate),
        },
        "budgets": [asdict(budget) for budget in budgets],
        "samples": _samples(folder, evaluation),
    }


def _component(size: ComponentSize) -> dict[str, Any]:
    return {
        "method": size.method,
        "baseline_bytes": size.baseline_bytes,
        "compressed_bytes": size.candidate_bytes,
        "layers_by_precision": dict(size.layers_by_precision),
    }


def _quality(evaluation: Evaluation) -> dict[str, Any]:
    quality = evaluation.quality
    clip = quality.clip_score
    return {
        "clip_score": {
            "baseline": clip.baseline,
            "compressed": clip.candidate,
            "difference": clip.difference.mean,
            "ci95": [clip.difference.low, clip.difference.high],
            "samples": clip.samples,
            "scorer": clip.scorer,
        },
        "psnr_db": asdict(quality.psnr_db),
        "ssim": asdict(quality.ssim),
        "unet_sqnr_db": _by_timestep(quality.unet_sqnr.candidate_db),
        "unet_sqnr_floor_db": _by_timestep(quality.unet_sqnr.floor_db),
    }


def _by_timestep(values: Mapping[int, float]) -> dict[str, float]:
    return {str(timestep): db for timestep, db in values.items()}


def _samples(folder: Path, evaluation: Evaluation) -> list[dict[str, Any]]:
    return [
        {
            "prompt": sample.prompt,
            "seed": sample.seed,
            "baseline": sample.baseline.relative_to(folder).as_posix(),
            "compressed": sample.candidate.relative_to(folder).as_posix(),
            "clip_score_baseline": sample.clip_score_baseline,
            "clip_score_compressed": sample.clip_score_candidate,
            "psnr_db": sample.psnr_db,
            "ssim": sample.ssim,
        }
        for sample in evaluation.samples
    ]
