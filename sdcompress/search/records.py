"""What a search found, as plain records."""

from collections.abc import Mapping
from dataclasses import dataclass

from sdcompress.evaluate.records import Estimate, Outcome
from sdcompress.methods import Method
from sdcompress.search.cost import ModelCost
from sdcompress.search.groups import Group
from sdcompress.search.sensitivity import Sensitivity
from sdcompress.search.solver import OBJECTIVES, Choice, Option


@dataclass(frozen=True)
class Candidate:
    """A method for the UNet, built, timed and drawn with.

    `figures` are those of the evaluation, against the float32 baseline, over `samples` pictures;
    `least_unet_db` is the UNet's SQNR at its worst timestep, measured where a budget asks for it.
    `outcome` is what both say of the recipe's budgets, None where there are none of these. What
    overflows has no figures and has failed.
    `call_ratio` is the time of a call by that of the UNet in 16 bits; `excess` tells which limits
    of the search are not kept. `choice` and what was expected of it are those of the solver, None
    where the method is not its own. `on_front` tells that no other candidate costs less and is
    better by CLIP score.
    """

    name: str
    method: Method
    figures: Mapping[str, Estimate]
    samples: int
    outcome: Outcome | None
    least_unet_db: float | None = None
    choice: Choice | None = None
    expected_noise: float | None = None
    expected_content: float | None = None
    call_seconds: float = 0.0
    call_ratio: float = 0.0
    stored_bytes: int = 0
    executed_bytes: float = 0.0
    excess: tuple[str, ...] = ()
    on_front: bool = False

    def cost(self, objective: str) -> float:
        """What the objective makes least."""
        field = OBJECTIVES[objective]
        return self.call_seconds if field == "seconds" else float(getattr(self, field))


@dataclass(frozen=True)
class Hunt:
    """Everything measured and chosen; candidates in the order in which they are to be tried."""

    groups: tuple[Group, ...]
    sensitivities: Mapping[str, Sensitivity]
    costs: Mapping[str, ModelCost]
    options: tuple[Option, ...]
    candidates: tuple[Candidate, ...]
    processor: str

    def offenders(self, candidate: Candidate, most: int = 5) -> list[Option]:
        """The groups that add most to a candidate's expected noise, or to its loss of content.

        At most so many of each, the worst first.
        """
        chosen = candidate.choice or {}
        used = [one for one in self.options if one.noise and chosen.get(one.group) == one.variant]
        by_noise = sorted(used, key=lambda one: -one.noise)[:most]
        by_content = sorted(used, key=lambda one: -one.content)[:most]
        return list(dict.fromkeys((*by_noise, *(one for one in by_content if one.content))))
