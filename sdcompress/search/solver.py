"""Chooses a variant for each group: an integer program over measured errors and costs.

Errors of groups are taken to add up, as independent noise does. That is an assumption: what the
solver finds is built and drawn with before anything is believed of it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

Choice = dict[str, str]
"""Group to variant."""
# Among choices that cost the same, the one with less error is taken.
_TIE = 1e-6


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

    `objective` is one of `OBJECTIVES`.
    """
    costs = _scaled([getattr(one, OBJECTIVES[objective]) for one in options])
    errors = _scaled([one.noise for one in options]) + _scaled([one.content for one in options])
    groups = list(dict.fromkeys(one.group for one in options))
    rows = np.array([[float(one.group == group) for one in options] for group in groups])
    constraints = [LinearConstraint(rows, 1.0, 1.0)]
    for field, limit in vars(limits).items():
        if limit is not None:
            figures = np.array([getattr(one, field) for one in options])
            constraints.append(LinearConstraint(figures / max(limit, 1e-30), -np.inf, 1.0))
    found = milp(
        costs + _TIE * errors,
        integrality=np.ones(len(options)),
        bounds=Bounds(0.0, 1.0),
        constraints=constraints,
        options={"mip_rel_gap": 0.0},
    )
    if found.x is None:
        return None
    return {one.group: one.variant for one, x in zip(options, found.x, strict=True) if x > 0.5}


def ladder(
    options: Sequence[Option], objective: str, limits: Limits, rungs: int = 24
) -> Iterator[Choice]:
    """Choices for ever smaller shares of the error that the cheapest choice has, each once.

    Both errors are allowed the same share. The first is the cheapest choice of all.
    """
    cheapest = solve(options, objective, limits)
    if cheapest is None:
        return
    seen = []
    noise, content = (total(options, cheapest, field) for field in ("noise", "content"))
    for share in (1.0, *np.geomspace(1.0, 0.01, rungs)[1:], 0.0):
        allowed = Limits(
            **{**vars(limits), "noise": noise * share or 0.0, "content": content * share or 0.0}
        )
        choice = cheapest if share == 1.0 else solve(options, objective, allowed)
        if choice is not None and choice not in seen:
            seen.append(choice)
            yield choice


def _scaled(values: Sequence[float]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """As shares of their sum, so that a tie-breaker is small beside a cost."""
    figures = np.array(values, dtype=np.float64)
    return figures / max(float(figures.sum()), 1e-30)
