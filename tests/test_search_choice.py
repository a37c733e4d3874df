"""Searching, the choice: limits, the solver, and which candidates are tried and evaluated."""

import itertools
import re
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from conftest import quick_recipe

from sdcompress import searching
from sdcompress.candidates import excess
from sdcompress.errors import InputError, QualityGateFailed, QualityUndecided
from sdcompress.evaluate.records import Estimate
from sdcompress.methods import Fp16, Int8, Int8Weights
from sdcompress.progress import SilentProgress
from sdcompress.recipe import Recipe
from sdcompress.report.search_page import candidate_rows, render_search
from sdcompress.runtime import NotFiniteError
from sdcompress.search.groups import Group
from sdcompress.search.records import Candidate, Hunt
from sdcompress.search.solver import Limits, Option, ladder, least_of_each, solve, total
from sdcompress.searching import close_in
from sdcompress.survey import Survey

VARIANTS = {"w8a8": Int8(method="int8"), "weights8": Int8Weights(method="int8_weights")}


def test_what_was_measured_is_held_against_the_limits() -> None:
    found = Candidate(
        "choice 1",
        VARIANTS["w8a8"],
        {},
        2,
        None,
        call_ratio=0.62,
        stored_bytes=9_000_000,
        executed_bytes=8e6,
    )
    kept = ("search={latency_ratio_max: 0.62, size_max: 9MB, memory_max: 0.008GB}",)
    assert list(excess(quick_recipe("unet_int8", *kept), found, 18_000_000)) == []
    broken = ("search={latency_ratio_max: 0.6, size_max: 8.5 MB}", "budgets.unet_bytes_ratio=0.4")
    assert list(excess(quick_recipe("unet_int8", *broken), found, 18_000_000)) == [
        "0.62 instead of search.latency_ratio_max 0.6",
        "0.5 instead of budgets.unet_bytes_ratio 0.4",
        "9 MB instead of search.size_max 8.5 MB",
    ]


def hunted(*candidates: Candidate) -> Hunt:
    options = (Option("mid_block resnet", "w8a8", 0.01, 0.002, 1, 1, 1),)
    return Hunt((), {}, {}, options, candidates, "")


def test_groups_are_blamed_by_either_yardstick() -> None:
    names = ("loud", "louder", "seen", "unseen", "unused")
    errors = ((0.2, 0.0), (0.3, 0.0), (0.02, 0.1), (0.01, 0.01), (0.9, 0.9))
    options = tuple(
        Option(name, "w8a8", *error, 1, 1, 1) for name, error in zip(names, errors, strict=True)
    )
    chosen = replace(LIGHT, choice=dict.fromkeys(names[:-1], "w8a8"))
    hunt = Hunt((), {}, {}, options, (chosen,), "")
    assert [one.group for one in hunt.offenders(chosen, 1)] == ["louder", "seen"]


CHOICE = {"mid_block resnet": "w8a8"}
OWN = Candidate("as the recipe says", VARIANTS["w8a8"], {}, 2, None)
LIGHT = replace(OWN, name="choice 1", choice=CHOICE)
LARGE = replace(LIGHT, name="choice 2", excess=("9 MB instead of search.size_max 8MB",))
SEEN = {"ssim": Estimate(0.9)}
WORSE = replace(LIGHT, name="choice 3", outcome="failed", figures=SEEN)
OVERFLOWING = replace(WORSE, name="choice 4", figures={})
WRONG_OWN = replace(OWN, outcome="failed")
PLAIN_OWN = replace(OWN, method=Fp16(method="fp16"))


@pytest.mark.parametrize(
    ("candidates", "passing", "evaluated", "message"),
    [
        ((LIGHT, OWN), {"choice 1"}, ["choice 1"], None),
        ((OWN, LIGHT), {"choice 1", OWN.name}, [OWN.name], None),
        ((OWN, LIGHT), {"choice 1"}, [OWN.name, "choice 1"], None),
        (
            (LIGHT, WORSE, OVERFLOWING, LARGE),
            set(),
            ["choice 1"],
            r"error of choice 1 [^!]*mid_block resnet +as w8a8 +20\.0 dB[^!]*Not evaluated:\n"
            r"  choice 3: broke budgets[^!]*\n  choice 4: overflows\n  choice 2: 9 MB instead of",
        ),
        # Groups are blamed where only the recipe's own method, which has none, was evaluated.
        ((OWN, WORSE), set(), [OWN.name], r"error of choice 3 [^!]*mid_block resnet +as w8a8"),
        ((LIGHT, OWN), set(), ["choice 1", OWN.name], "last .*as the recipe says:[^!]*of choice 1"),
        ((WRONG_OWN, WORSE), set(), ["choice 3"], "the last .*choice 3"),
        ((LARGE, WRONG_OWN), set(), [OWN.name], r"the last .*as the recipe says:\nclip_score_drop"),
        ((LARGE,), set(), [], "no candidate keeps to the limits[^!]*choice 2: 9 MB instead of"),
        # Nothing would be compressed.
        ((PLAIN_OWN, LARGE), {OWN.name}, [], "no candidate keeps to the limits"),
    ],
)
def test_candidates_are_evaluated_in_their_order_until_one_passes(
    candidates: tuple[Candidate, ...],
    passing: set[str],
    evaluated: list[str],
    message: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[str] = []

    def quantize(*_: object, **__: object) -> str:
        if seen[-1] not in passing:
            raise QualityGateFailed("clip_score_drop")
        return "run"

    class Noting(SilentProgress):
        def notice(self, message: str) -> None:
            if name := re.match("evaluating (.*) on prompts", message):
                seen.append(name[1])

    monkeypatch.setattr(searching, "quantize", quantize)
    outcome = nullcontext() if message is None else pytest.raises(QualityGateFailed, match=message)
    with outcome:
        recipe = quick_recipe("unet_int8")
        chosen, run, refused = searching._confirmed(
            recipe, hunted(*candidates), tmp_path, Noting(), ignore_preflight=False
        )
        assert (chosen.name, run, refused) == (evaluated[-1], "run", len(evaluated) - 1)
    assert seen == evaluated


def test_more_pictures_could_decide_where_they_could_for_any(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reasons = [
        QualityUndecided("clip_score_drop: 90 more pictures\nThe report is in found"),
        NotFiniteError("the latents are not finite"),
    ]

    def quantize(*_: object, **__: object) -> None:
        raise reasons.pop(0)

    monkeypatch.setattr(searching, "quantize", quantize)
    with pytest.raises(QualityUndecided) as refusal:
        searching._confirmed(
            quick_recipe("unet_int8"), hunted(LIGHT, OWN), Path(), SilentProgress(),
            ignore_preflight=False,
        )  # fmt: skip
    lines = str(refusal.value).splitlines()
    assert lines[0].endswith("as the recipe says:")
    assert lines[1] == "it overflows: the latents are not finite"
    assert lines[2:4] == [
        "Evaluated before:", "  choice 1: clip_score_drop: 90 more pictures",
    ]  # fmt: skip


def test_what_overflows_has_a_row_without_figures() -> None:
    rows = list(candidate_rows(hunted(replace(OWN, outcome="failed"))))
    assert rows[1].count("-") == 4  # CLIP score, its interval, SSIM, SQNR
    page = render_search(quick_recipe("unet_int8"), hunted(OWN), "verdict")
    assert page.count("<svg") == 0


@pytest.mark.parametrize(
    ("passing", "tried"),
    [
        (0, [0, 8, 16, 24]),  # the cheapest passes: others, in case that it fails later on
        (10, [0, 12, 6, 24]),  # the last is more careful than need be
        (25, [0, 12, 18, 24]),
    ],
)
def test_tries_close_in_on_the_first_that_succeeds(passing: int, tried: list[int]) -> None:
    seen: list[int] = []

    def attempt(place: int) -> bool:
        seen.append(place)
        return place >= passing

    close_in(25, 4, attempt)
    assert seen == tried


@pytest.mark.parametrize("count", range(1, 9))
@pytest.mark.parametrize("most", range(1, 9))
def test_no_place_is_tried_twice(count: int, most: int) -> None:
    for passing in range(count + 1):
        seen: list[int] = []

        def attempt(place: int, seen: list[int] = seen, passing: int = passing) -> bool:
            seen.append(place)
            return place >= passing

        close_in(count, most, attempt)
        assert len(seen) == len(set(seen)) <= min(count, most)
        if most >= count and passing < count:
            assert passing in seen


@dataclass(frozen=True)
class Surveyed:
    """What a survey knows of one group."""

    exact_options: tuple[Option, ...]
    options: tuple[Option, ...]
    recipe: Recipe = field(default_factory=lambda: quick_recipe("unet_int8"))
    line: SimpleNamespace = field(
        default_factory=lambda: SimpleNamespace(progress=SilentProgress())
    )
    groups: tuple[Group, ...] = (Group("mid_block", "resnet", ("mid_block.resnets.0.conv1/x",)),)

    def limits(self) -> Limits:
        return Limits(stored_bytes=2.0)

    def reachable(self, least: Mapping[str, float]) -> list[str]:
        return [f"{name} {value:g} at least" for name, value in least.items()]


def as_variant(name: str, noise: float, seconds: float, stored: float) -> Option:
    return Option("mid_block resnet", name, noise, 0.0, seconds, stored, 1.0)


SMALL, LIGHTER, LARGE_16 = (
    as_variant("w8a8", 0.1, 1.0, 1.0),
    as_variant("weights8", 0.01, 2.0, 1.0),
    as_variant("fp16", 0.0, 3.0, 2.0),
)


@pytest.mark.parametrize(
    ("exact", "left", "message"),
    [
        ((replace(LARGE_16, stored_bytes=3.0),), (), "keeps to the limits. stored_bytes 3 at leas"),
        ((SMALL, LARGE_16), (LARGE_16,), "all that keeps to the limits of .* overflows"),
        ((SMALL, LARGE_16), (replace(SMALL, seconds=4.0), LARGE_16), "costs less than 16 bits"),
    ],
)
def test_why_there_is_nothing_to_choose_is_told(
    exact: tuple[Option, ...], left: tuple[Option, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        searching._choices(cast(Survey, Surveyed(exact, left)))


def test_the_recipes_own_method_is_no_choice() -> None:
    options = (SMALL, LIGHTER, LARGE_16)
    surveyed = Surveyed(options, options)
    own = surveyed.recipe.search.variants["w8a8"]
    for method, expected in (
        (surveyed.recipe.compress.unet, ["w8a8", "weights8"]),
        (own, ["weights8"]),
    ):
        survey = cast(Survey, replace(surveyed, recipe=surveyed.recipe.with_unet(method)))
        chosen = [one.choice for one in searching._proposals(survey)]
        assert chosen == [{"mid_block resnet": name} for name in expected]


def options_of(random: np.random.Generator, groups: int, variants: int) -> list[Option]:
    return [
        Option(f"g{group}", f"v{variant}", *(variant * random.random(2)), *random.random(3))
        for group in range(groups)
        for variant in range(variants)
    ]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("objective", ["latency", "size", "memory"])
def test_no_choice_within_the_limits_costs_less(seed: int, objective: str) -> None:
    options = options_of(np.random.default_rng(seed), groups=5, variants=3)
    limits = Limits(noise=2.0, content=2.4, stored_bytes=2.9)
    found = solve(options, objective, limits)
    field = {"latency": "seconds", "size": "stored_bytes", "memory": "executed_bytes"}[objective]
    costs = []
    for chosen in itertools.product(range(3), repeat=5):
        choice = {f"g{group}": f"v{variant}" for group, variant in enumerate(chosen)}
        within = all(
            total(options, choice, name) <= limit
            for name, limit in vars(limits).items()
            if limit is not None
        )
        if within:
            costs.append(total(options, choice, field))
    if not costs:
        assert found is None
    else:
        assert found is not None
        assert total(options, found, field) == pytest.approx(min(costs), rel=1e-4)


def test_the_ladder_goes_from_the_cheapest_to_the_most_exact() -> None:
    options = options_of(np.random.default_rng(3), groups=6, variants=3)
    told: list[tuple[int, int]] = []
    rungs = ladder(options, "latency", Limits(), lambda *step: told.append(step))
    assert told == [(step, 24) for step in range(1, 25)]
    seconds = [total(options, one, "seconds") for one in rungs]
    noise = [total(options, one, "noise") for one in rungs]
    assert len(rungs) > 3
    assert seconds == sorted(seconds)
    assert noise[0] > noise[-1] == 0.0
    assert all(rungs[index] not in rungs[:index] for index in range(len(rungs)))


@pytest.mark.parametrize("seconds", [11.0, 12.0, 14.0, 17.0])
def test_limits_leave_choices_down_to_the_least_error_within_them(seconds: float) -> None:
    noise = [0.001 * (1 + group) for group in range(10)]
    options = [
        Option(f"g{group}", name, error, 0.0, cost, 1.0, 1.0)
        for group in range(10)
        for name, error, cost in (("w8a8", noise[group], 1.0), ("fp16", 0.0, 2.0))
    ]
    rungs = ladder(options, "latency", Limits(seconds=seconds), lambda *_: None)
    assert all(total(options, one, "seconds") <= seconds for one in rungs)
    # The time that is left keeps the worst groups in 16 bits.
    least = sum(noise[: 20 - int(seconds)])
    assert total(options, rungs[-1], "noise") == pytest.approx(least, rel=0.05)


def test_where_content_cannot_be_kept_fidelity_still_can() -> None:
    options = [
        Option("text", "w8a8", 0.1, 0.3, 1, 1.0, 1),
        Option("text", "fp16", 0.0, 0.0, 2, 9.0, 1),  # too large
        *(
            Option(f"g{group}", name, error, 0.0, cost, 1.0, 1)
            for group in range(3)
            for name, error, cost in (("w8a8", 0.2, 1), ("fp16", 0.0, 2))
        ),
    ]
    rungs = ladder(options, "latency", Limits(stored_bytes=5.0), lambda *_: None)
    noise = [round(total(options, one, "noise"), 6) for one in rungs]
    assert noise == [0.7, 0.5, 0.3, 0.1]


@pytest.mark.parametrize("outlier", [1.0, 1e3, 1e6])
def test_a_group_far_above_the_others_leaves_choices_among_these(outlier: float) -> None:
    options = [
        Option(f"g{group}", name, noise, 0.0, seconds, 1.0, 1.0)
        for group in range(8)
        for name, noise, seconds in (("w8a8", 0.001 * (1 + group), 1.0), ("fp16", 0.0, 2.0))
    ]
    options[0] = replace(options[0], noise=0.001 * outlier)
    rungs = ladder(options, "latency", Limits(), lambda *_: None)
    kept = [sum(name == "fp16" for name in one.values()) for one in rungs]
    assert kept[0] == 0
    assert kept[-1] == 8
    assert len(set(kept)) >= 6


def test_among_equal_costs_the_smaller_error_is_taken() -> None:
    options = [Option("g", "rough", 0.5, 0.0, 1, 1, 1), Option("g", "fine", 0.1, 0.0, 1, 1, 1)]
    assert solve(options, "size", Limits()) == {"g": "fine"}
    many = [replace(one, group=f"g{group}") for group in range(50) for one in options]
    assert set((solve(many, "size", Limits()) or {}).values()) == {"fine"}


def test_limits_out_of_reach_are_told_with_what_is_in_reach() -> None:
    options = [
        Option("g", "quick", 0.1, 0.0, seconds=1, stored_bytes=9, executed_bytes=5),
        Option("g", "small", 0.1, 0.0, seconds=4, stored_bytes=2, executed_bytes=5),
        Option("g", "exact", 0.0, 0.0, seconds=9, stored_bytes=9, executed_bytes=9),
    ]

    def least(**limits: float) -> dict[str, float] | None:
        told: list[tuple[int, int]] = []
        found = least_of_each(options, Limits(**limits), lambda *at: told.append(at))
        assert told[-1][0] == told[-1][1]
        return found

    assert least(seconds=4, stored_bytes=2) is None
    assert least(seconds=0.5) == {"seconds": 1}
    # Each can be kept, but not both.
    assert least(seconds=3, stored_bytes=3) == {"seconds": 4, "stored_bytes": 9}
    assert least(seconds=3, executed_bytes=4) == {"seconds": 1, "executed_bytes": 5}


def test_a_limit_of_nothing_leaves_what_has_none() -> None:
    options = [Option("g", "exact", 0.0, 0.0, 9, 1, 1), Option("g", "quick", 0.1, 0.0, 1, 1, 1)]
    assert solve(options, "latency", Limits(noise=0.0)) == {"g": "exact"}
    assert solve(options[1:], "latency", Limits(noise=0.0)) is None
