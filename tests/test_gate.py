"""The gate: each budget is judged by its own figure, on the right side, and NaN never passes."""

from dataclasses import replace

import pytest

from sdcompress.evaluate.metrics import Metric
from sdcompress.evaluate.records import (
    Change,
    ComponentSize,
    Estimate,
    Evaluation,
    LayerErrors,
    Look,
    MetricResult,
    Performance,
    Quality,
    Side,
    Spread,
    Sqnr,
)
from sdcompress.gate import judge, judge_network, status_of
from sdcompress.recipe import Budgets


def result(name: str, change: Change) -> MetricResult:
    metric = Metric(name, name, "pair", "higher", "", "a figure", None, None, "a test")
    return MetricResult(metric, change, {})


def evaluation(drop: Estimate, ssim: Estimate, looks: tuple[Look, ...] = ()) -> Evaluation:
    quality = Quality(
        metrics=(
            result("clip_score", Change(drop, 64, 30.0, 29.6, -3.0)),
            result("psnr_db", Change(Estimate(30.0, 29.0, 31.0), 64, worst=25.0)),
            result("ssim", Change(ssim, 64, worst=0.8)),
            result("clip_similarity", Change(Estimate(0.95, 0.94, 0.96), 64, worst=0.9)),
        ),
        skipped=(),
        yardsticks={},
        sqnr=Sqnr({900: 25.0, 100: 18.0}, {}, {900: 30.0, 100: 20.0}, {}, (0.99, 0.97)),
        layer_errors=LayerErrors(500, ()),
        looks=looks,
    )
    ratios = {
        "unet_step_seconds": Spread(0.5, 0.4, 0.6),
        "image_seconds": Spread(0.8, 0.7, 0.9),
        "peak_rss_bytes": Spread(0.5, 0.4, 0.6),
    }
    performance = Performance(side(1000), side(300), ratios)
    return Evaluation(quality, performance, (), {})


def side(disk_bytes: int) -> Side:
    one = Spread(1.0, 1.0, 1.0)
    return Side(one, one, one, {}, one, one, one, one, one, one, disk_bytes, 0.5, ())


EVALUATION = evaluation(Estimate(-0.4, -0.7, -0.1), Estimate(0.9, 0.88, 0.91))
COMPONENTS = {"unet": ComponentSize("int8", 1000, 290, {})}


@pytest.mark.parametrize(
    ("name", "value", "low", "high", "side"),
    [
        ("clip_score_drop", 0.4, 0.1, 0.7, "max"),
        ("psnr_min_db", 30.0, 29.0, 31.0, "min"),
        ("ssim_min", 0.9, 0.88, 0.91, "min"),
        ("clip_similarity_min", 0.95, 0.94, 0.96, "min"),
    ],
)
def test_estimates_are_judged_by_their_whole_interval(
    name: str, value: float, low: float, high: float, side: str
) -> None:
    worst, best = (high, low) if side == "max" else (low, high)
    outward = 1e-6 if side == "max" else -1e-6
    for limit, outcome in (
        (worst + outward, "passed"),
        (value, "undecided"),
        (best - outward, "failed"),
    ):
        (found,) = judge(Budgets(**{name: limit}), EVALUATION, COMPONENTS)
        assert found.outcome == outcome, limit
        assert found.passed is (outcome == "passed")
        assert (found.value, found.low, found.high) == pytest.approx((value, low, high))
        assert found.kind == side


def test_an_open_budget_says_how_many_more_samples_it_needs() -> None:
    (found,) = judge(Budgets(clip_score_drop=0.5), EVALUATION, COMPONENTS)
    deviation = 0.3 / 1.9983 * 8  # of 64 samples whose interval by Student's t is 0.6 wide
    needed = ((1.96 + 0.8416) * deviation / 0.1) ** 2
    assert found.more == pytest.approx(needed - 64, abs=3)
    (on_the_edge,) = judge(Budgets(clip_score_drop=0.4), EVALUATION, COMPONENTS)
    assert (on_the_edge.outcome, on_the_edge.more) == ("undecided", None)


def test_a_sequential_evaluation_is_judged_by_its_last_look() -> None:
    looks = (
        Look("clip_score_drop", 20, -0.4, -1.5, 0.7, "undecided"),
        Look("clip_score_drop", 64, -0.4, -0.9, 0.1, "undecided"),
        Look("ssim_min", 64, 0.9, 0.85, 0.92, "undecided"),
    )
    found = evaluation(Estimate(-0.4, -0.45, -0.35), Estimate(0.9, 0.88, 0.91), looks)
    (drop,) = judge(Budgets(clip_score_drop=0.6), found, COMPONENTS)
    assert (drop.low, drop.high) == pytest.approx((-0.1, 0.9))
    assert drop.outcome == "undecided"


def test_the_status_is_that_of_the_worst_budget() -> None:
    budgets = {"ssim_min": 0.5, "unet_bytes_ratio": 0.3}
    assert status_of(judge(Budgets(**budgets), EVALUATION, COMPONENTS)) == "passed"
    budgets["clip_score_drop"] = 0.5
    assert status_of(judge(Budgets(**budgets), EVALUATION, COMPONENTS)) == "undecided"
    budgets["disk_ratio"] = 0.1
    assert status_of(judge(Budgets(**budgets), EVALUATION, COMPONENTS)) == "failed"


@pytest.mark.parametrize(
    ("name", "value", "side"),
    [
        ("unet_sqnr_min_db", 18.0, "min"),
        ("decoder_ssim_min", 0.97, "min"),
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


def test_the_networks_own_budget_is_judged_alone() -> None:
    sqnr = EVALUATION.quality.sqnr
    (result,) = judge_network(Budgets(unet_sqnr_min_db=18.5, ssim_min=0.9), sqnr)
    assert (result.name, result.outcome) == ("unet_sqnr_min_db", "failed")
    assert judge_network(Budgets(ssim_min=0.9), sqnr) == ()


def test_every_budget_of_the_recipe_has_a_rule() -> None:
    budgets = Budgets(**dict.fromkeys(Budgets.model_fields, 0.5))
    judged = {result.name for result in judge(budgets, EVALUATION, COMPONENTS)}
    assert judged == set(Budgets.model_fields)


@pytest.mark.parametrize("name", ["ssim_min", "peak_memory_ratio"])
def test_a_value_that_is_no_number_fails(name: str) -> None:
    nan = float("nan")
    broken = evaluation(Estimate(0.0, 0.0, 0.0), Estimate(nan, nan, nan))
    ratios = {**broken.performance.ratios, "peak_rss_bytes": Spread(nan, nan, nan)}
    broken = replace(broken, performance=replace(broken.performance, ratios=ratios))
    (found,) = judge(Budgets(**{name: 0.1}), broken, COMPONENTS)
    assert found.outcome == "failed"
