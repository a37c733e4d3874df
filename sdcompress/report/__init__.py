"""Writes down what an evaluation found: report.json, report.md, report.html and a picture grid."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sdcompress.evaluate.records import BudgetResult, ComponentSize, Evaluation, Outcome
from sdcompress.report.document import build_document
from sdcompress.report.environment import describe_environment
from sdcompress.report.grid import draw_grid
from sdcompress.report.html import render_html
from sdcompress.report.markdown import write_markdown
from sdcompress.store import StageRecord


def write_report(
    folder: Path,
    *,
    status: Outcome,
    recipe: dict[str, Any],
    model: Mapping[str, Any],
    device: str,
    components: Mapping[str, ComponentSize],
    evaluation: Evaluation,
    budgets: Sequence[BudgetResult],
    stages: Sequence[StageRecord],
) -> None:
    """Writes the report into `folder`, which holds the sample pictures and layers.json."""
    environment = describe_environment(device, evaluation.execution_precisions)
    document = build_document(
        folder, status, recipe, model, environment, components, evaluation, budgets
    )
    document["stages"] = [asdict(stage) for stage in stages]
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / "report.json").write_text(text + "\n", encoding="utf-8")
    (folder / "report.md").write_text(write_markdown(document), encoding="utf-8")
    (folder / "report.html").write_text(render_html(document, folder), encoding="utf-8")
    draw_grid(evaluation.samples).save(folder / "grid.png", optimize=True)
