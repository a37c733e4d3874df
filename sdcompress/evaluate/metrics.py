"""The metrics: what each is called, what it means and which way is better.

Three kinds. A *picture* metric gives every picture a value of its own, so the two sides are
compared by the paired difference. A *pair* metric says how alike the two pictures of a pair are.
A *set* metric compares all pictures of one side with all of the other.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["picture", "pair", "set"]
Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Metric:
    """A metric's identity card, which the report carries.

    `made_by` names what computes it: scorer, preprocessing, weights.
    """

    name: str
    title: str
    kind: Kind
    better: Better
    unit: str
    definition: str
    low: float | None  # the least and the greatest value there can be
    high: float | None
    made_by: str
    digits: int = 2
