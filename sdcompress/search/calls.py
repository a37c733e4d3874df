"""UNet calls to judge by: recorded calibration inputs, spread over the timesteps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdcompress.errors import CalibrationError
from sdcompress.runtime.schedulers.estimate import split

Array = np.ndarray[Any, Any]
LOOK_CELLS = 32
"""Of latents a side, those that CLIP's view of a picture needs: 256 pixels, and it looks at 224."""


@dataclass(frozen=True)
class Call:
    """One call with all guidance branches, as the UNet's inputs by name.

    `sigma` is the noise level, noise to signal.
    """

    inputs: dict[str, Array]
    timestep: int
    sigma: float


@dataclass(frozen=True)
class Guidance:
    """How predictions of the branches become one, and clean latents."""

    scale: float
    prediction_type: str

    def guided(self, prediction: Array) -> Array:
        """One prediction [1, 4, h/8, w/8] of the branches' [1 or 2, 4, h/8, w/8]."""
        if len(prediction) == 1:
            return prediction
        base, conditioned = prediction[:1], prediction[1:]
        return np.asarray(base + (conditioned - base) * self.scale)

    def clean(self, call: Call, prediction: Array) -> Array:
        """The clean latents that a call's guided prediction speaks of."""
        latents, _ = split(
            self.prediction_type, call.inputs["sample"][:1], call.sigma, self.guided(prediction)
        )
        return latents


def look_block(cells: int) -> int:
    """How many cells of latents a side become one, where the shorter side has so many."""
    return max(1, cells // LOOK_CELLS)


def shrunk(latents: Array) -> Array:
    """Means of square blocks of latents [1, 4, h/8, w/8], the largest that leave `LOOK_CELLS`.

    Smaller latents stay as they are.
    """
    block = look_block(min(latents.shape[2:]))
    rows, columns = (side // block for side in latents.shape[2:])
    cut = latents[:, :, : rows * block, : columns * block]
    blocks = cut.reshape(*latents.shape[:2], rows, block, columns, block)
    return np.asarray(blocks.mean((3, 5)), latents.dtype)


def pick_calls(inputs: Any, count: int, levels: Array) -> tuple[Call, ...]:
    """Takes `count` of the recorded calls, evenly over their order in time, the noisiest first.

    `inputs` are a UNet's recorded inputs, a call's branches together; `levels` the noise level of
    each training step. Raises CalibrationError when there are fewer calls.
    """
    timesteps = inputs.timesteps()
    if count > len(timesteps):
        raise CalibrationError(
            f"search.timesteps asks for {count} calls, but only {len(timesteps)} are recorded: "
            "raise calibrate.samples or lower it"
        )
    order = np.argsort(-timesteps, kind="stable")
    places = order[_centres(len(order), count)]
    return tuple(_call(inputs.at(int(place)), timesteps[place], levels) for place in places)


def _centres(length: int, count: int) -> Sequence[int]:
    """The middle of each of `count` equal parts."""
    return [(2 * part + 1) * length // (2 * count) for part in range(count)]


def _call(inputs: dict[str, Array], timestep: float, levels: Array) -> Call:
    sigma = float(np.interp(timestep, np.arange(len(levels)), levels))
    return Call(inputs, round(float(timestep)), sigma)
