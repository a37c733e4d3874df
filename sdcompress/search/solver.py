"""Chooses a variant for each group: an integer program over measured errors and costs.

Errors of groups are taken to add up, as independent noise does. That is an assumption: what the
solver finds is built and drawn with before anything is believed of it.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from sdcompress.progress import Advance

Choice = dict[str, str]
"""Group to variant."""

_RUNGS = 24
_SHARE = 0.8  # of the last choice's errors, what the next may have


@dataclass(frozen=True)
class Option:
    """What a group is and costs as one variant. Errors and costs are what the group adds."""

    group: str
    variant: str
    noise: float
    content: float
    seconds: float
    stored_bytes: float
    executed_bytes: float


@dataclass(frozen=True)
class Limits:
    """The most that all groups together may have; None is no limit."""

    noise: float | None = None
    content: float | None = None
    seconds: float | None = None
    stored_bytes: float | None = None
    executed_bytes: float | None = None


OBJECTIVES: dict[str, str] = {
    "latency": "seconds",
    "size": "stored_bytes",
    "memory": "executed_bytes",
}


def total(options: Sequence[Option], choice: Mapping[str, str], field: str) -> float:
    """The sum of one of the options' figures over a choice."""
    return float(
        sum(getattr(one, field) for one in options if choice.get(one.group) == one.variant)
    )


def solve(options: Sequence[Option], objective: str, limits: Limits) -> Choice | None:
    """The choice with the least cost within the limits; None if there is none.

    `objective` is one of `OBJECTIVES`. Where another variant of a group costs no more and errs
    less, that is taken.
    """
    field = OBJECTIVES[objective]
    limited = {name for name, limit in vars(limits).items() if limit is not None}
    figures = {"noise", "content", field, *limited}
    useful = [one for one in options if not _beaten(one, options, figures)]
    groups = list(dict.fromkeys(one.group for one in useful))
    rows = np.array([[float(one.group == group) for one in useful] for group in groups])
    constraints, highest = [LinearConstraint(rows, 1.0, 1.0)], np.ones(len(useful))
    for name, limit in vars(limits).items():
        values = np.array([getattr(one, name) for one in useful])
        if limit is not None and limit > 0.0:
            constraints.append(LinearConstraint(values / limit, -np.inf, 1.0))
        elif limit is not None:
            highest[values > 0.0] = 0.0
    costs = np.array([getattr(one, field) for one in useful])
    found = milp(
        costs / max(float(costs.mean()), 1e-30),
        integrality=np.ones(len(useful)),
        bounds=Bounds(0.0, highest),
        constraints=constraints,
        options={"mip_rel_gap": 0.0},
    )
    if found.x is None:
        return None
    return {one.group: one.variant for one, x in zip(useful, found.x, strict=True) if x > 0.5}


def least_of_each(
    options: Sequence[Option], limits: Limits, advance: Advance
) -> dict[str, float] | None:
    """The least of each limited cost, within the other limits where these can be kept.

    None where all limits can be kept together.
    """
    if solve(options, "size", limits) is not None:
        advance(1, 1)
        return None
    fields = {
        name: field for name, field in OBJECTIVES.items() if getattr(limits, field) is not None
    }
    found = {}
    for done, (objective, field) in enumerate(fields.items(), 1):
        others = replace(limits, **{field: None})
        choice = solve(options, objective, others) or solve(options, objective, Limits())
        found[field] = total(options, choice or {}, field)
        advance(done, len(fields))
    return found


def _beaten(one: Option, options: Sequence[Option], figures: Collection[str]) -> bool:
    """Whether another of the group's is as good in all figures, and errs less.

    Ties between costs would otherwise be decided by the solver's tolerance.
    """
    return any(
        other.group == one.group
        and (other.noise, other.content) != (one.noise, one.content)
        and all(getattr(other, figure) <= getattr(one, figure) for figure in figures)
        for other in options
    )


def ladder(
    options: Sequence[Option], objective: str, limits: Limits, advance: Advance
) -> list[Choice]:
    """Choices for ever smaller errors, the cheapest of all first; none if nothing keeps to limits.

    Errors are allowed a share of what the choice before has, so that one group whose error is far
    above the others' leaves choices among these. Where limits leave none, steps become shorter, so
    that the last choices err little more than any within the limits has to.
    """
    cheapest = solve(options, objective, limits)
    if cheapest is None:
        return []
    found, share = [cheapest], _SHARE
    for rung in range(1, _RUNGS + 1):
        choice = _gentler(options, objective, limits, found[-1], share)
        if choice is None:
            share = (1.0 + share) / 2.0
        else:
            found.append(choice)
        advance(rung, _RUNGS)
    return found


def _gentler(
    options: Sequence[Option], objective: str, limits: Limits, last: Choice, share: float
) -> Choice | None:
    """The cheapest choice with so small a share of both errors of the last one.

    Or else of one of them, where the other grows no larger.
    """
    errors = {name: total(options, last, name) for name in ("noise", "content")}
    for lowered in (("noise", "content"), ("noise",), ("content",)):
        allowed = errors | {name: share * errors[name] for name in lowered}
        choice = solve(options, objective, replace(limits, **allowed))
        if choice not in (None, last):
            return choice
    return None
