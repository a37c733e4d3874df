"""The gate: each budget is judged by its own figure, on the right side, and NaN never passes."""

from dataclasses import replace
from pathlib import Path

import pytest

from sdcompress.evaluate.records import (
    ClipScore,
    ComponentSize,
    Evaluation,
    Footprint,
    Interval,
    PairFidelity,
    Performance,
    Quality,
    Sample,
    UnetSqnr,
)
from sdcompress.gate import judge
from sdcompress.recipe import Budgets

SAMPLE = Sample("a green star", 1, Path("b.png"), Path("c.png"), 30.0, 29.0, 30.0, 0.9)
EVALUATION = Evaluation(
    quality=Quality(
        ClipScore(30.0, 29.6, Interval(-0.4, -0.7, -0.1), 2, "scorer"),
        PairFidelity(30.0, 25.0),
        PairFidelity(0.9, 0.8),
        UnetSqnr({900: 25.0, 100: 18.0}, {900: 50.0, 100: 40.0}),
    ),
    performance=Performance(
        Footprint(2.0, 0.4, 10.0, 1000, 800, 1000), Footprint(1.0, 0.2, 8.0, 500, 400, 300)
    ),
    samples=(SAMPLE, SAMPLE),
    execution_precisions={},
)
COMPONENTS = {"unet": ComponentSize("int8", 1000, 290, {})}


@pytest.mark.parametrize(
    ("name", "value", "side"),
    [
        ("clip_score_drop", 0.7, "max"),  # the upper bound of the drop, not its mean
        ("psnr_min_db", 30.0, "min"),
        ("ssim_min", 0.9, "min"),
        ("unet_sqnr_min_db", 18.0, "min"),
        ("unet_bytes_ratio", 0.29, "max"),
        ("disk_ratio", 0.3, "max"),
        ("peak_memory_ratio", 0.5, "max"),
        ("step_speedup_min", 2.0, "min"),
        ("image_speedup_min", 1.25, "min"),
    ],
)
def test_each_budget(name: str, value: float, side: str) -> None:
    slack = 0.01 if side == "max" else -0.01
    for limit, passes in ((value + slack, True), (value - slack, False)):
        (result,) = judge(Budgets(**{name: limit}), EVALUATION, COMPONENTS)
        assert result.name == name
        assert result.value == pytest.approx(value)
        assert result.passed is passes
        assert result.kind == side


def test_every_budget_of_the_recipe_has_a_rule() -> None:
    budgets = Budgets(**dict.fromkeys(Budgets.model_fields, 0.5))
    judged = {result.name for result in judge(budgets, EVALUATION, COMPONENTS)}
    assert judged == set(Budgets.model_fields)


def test_a_value_that_is_no_number_fails() -> None:
    nan = float("nan")
    quality = replace(EVALUATION.quality, ssim=PairFidelity(nan, nan))
    broken = replace(EVALUATION, quality=quality)
    (result,) = judge(Budgets(ssim_min=-1.0), broken, COMPONENTS)
    assert not result.passed
