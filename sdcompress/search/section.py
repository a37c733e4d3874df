"""What a recipe says about its search."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from sdcompress.methods import PLAIN, Grouping, Int4Weights, Int8, Int8Weights, Plain
from sdcompress.recipe_yaml import FaultyKeyError, Section
from sdcompress.sizes import checked_size, parse_size

Size = Annotated[str, BeforeValidator(checked_size)]


def _usual_variants() -> dict[str, Plain]:
    return {
        "w8a8": Int8(method="int8"),
        "weights8": Int8Weights(method="int8_weights", convolutions=True),
        "weights4": Int4Weights(method="int4_weights"),
    }


class Search(Section):
    """How `sdcompress search` looks for what each group of the UNet's layers may be compressed to.

    A group is left in 16 bits or taken from one of the `variants`. Its error is measured on calls
    at so many `timesteps`; the `confirmed` groups with the largest are also drawn with, on
    `trajectories` prompts in `trajectory_steps` steps. What is least within the limits is looked
    for: a call's time (`latency`), the file (`size`) or weights in memory (`memory`). As many
    `candidates` are built, drawn on `prompts` that are neither calibrated nor evaluated on, and
    ranked. Limits are of the UNet: `latency_ratio_max` of a call's time as a share of what 16 bits
    take, `size_max` of its file and `memory_max` of its weights as the device keeps them, such as
    700MB or 1.2GB.
    """

    variants: dict[str, Plain] = Field(default_factory=_usual_variants)
    grouping: Grouping = "block"
    timesteps: Annotated[int, Field(ge=1)] = 4
    confirmed: Annotated[int, Field(ge=1)] = 4
    trajectories: Annotated[int, Field(ge=1)] = 1
    trajectory_steps: Annotated[int, Field(ge=2)] = 6
    objective: Literal["latency", "size", "memory"] = "latency"
    latency_ratio_max: Annotated[float, Field(gt=0.0)] | None = None
    size_max: Size | None = None
    memory_max: Size | None = None
    candidates: Annotated[int, Field(ge=1)] = 4
    prompts: Annotated[int, Field(ge=2)] = 16

    @property
    def size_bytes(self) -> int | None:
        """The limit of the file."""
        return None if self.size_max is None else parse_size(self.size_max)

    @property
    def memory_bytes(self) -> int | None:
        """The limit of the weights in memory."""
        return None if self.memory_max is None else parse_size(self.memory_max)

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if not self.variants:
            raise FaultyKeyError("variants", "there is nothing to choose from: name one at least")
        for name, method in self.variants.items():
            if PLAIN in (name, method.method):
                raise FaultyKeyError(
                    f"variants.{name}", "every group may stay in 16 bits anyway: leave fp16 out"
                )
        if self.trajectories > self.prompts:
            raise FaultyKeyError(
                "trajectories", f"there are {self.prompts} search.prompts to draw them with"
            )
        return self
