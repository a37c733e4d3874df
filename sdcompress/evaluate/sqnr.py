"""Signal-to-quantization-noise ratio of the UNet's output, timestep by timestep.

Both UNets get the inputs of the baseline's own trajectory, so the figure shows the error of one
call and not the drift of a whole trajectory: 10 log10(|y|^2 / |y - y'|^2), in dB, over both
guidance branches.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sdcompress.evaluate.fidelity import sqnr_db
from sdcompress.prompts import Prompt
from sdcompress.runtime import Job, Pipeline, Settings

Array = np.ndarray[Any, Any]


def unet_sqnr(
    baseline: Pipeline,
    candidate: Pipeline,
    prompts: Sequence[Prompt],
    seed: int,
    settings: Settings,
    on_prompt: Callable[[int, int], None] | None = None,
) -> dict[int, float]:
    """Returns the mean SQNR in dB at each timestep of the schedule, first timestep first."""
    values: dict[int, list[float]] = defaultdict(list)

    def compared(sample: Array, timestep: float, encoder_hidden_states: Array) -> Array:
        expected = baseline.unet(sample, timestep, encoder_hidden_states)
        actual = candidate.unet(sample, timestep, encoder_hidden_states)
        values[round(timestep)].append(sqnr_db(expected, actual))
        return expected

    for index, prompt in enumerate(prompts):
        negative = prompt.negative or ""
        unconditional, conditional = baseline.encode([negative, prompt.text], settings)
        baseline.denoise(
            baseline.begin(Job(prompt.text, negative, seed + index), settings),
            conditional[None],
            unconditional[None],
            settings,
            unet=compared,
        )
        if on_prompt:
            on_prompt(index + 1, len(prompts))
    return {timestep: float(np.mean(dbs)) for timestep, dbs in values.items()}
