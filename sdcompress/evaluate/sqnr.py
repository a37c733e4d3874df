"""Signal-to-quantization-noise ratio of the UNet's output, timestep by timestep.

All UNets get the inputs of the baseline's own trajectory, so the figure shows the error of one call
and not the drift of a whole trajectory: 10 log10(|y|^2 / |y - y'|^2), in dB, over both guidance
branches. One model is open at a time.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sdcompress.evaluate.fidelity import sqnr_db
from sdcompress.prompts import Prompt
from sdcompress.runtime import Job, Pipeline, Settings
from sdcompress.store import written_whole

Array = np.ndarray[Any, Any]
OnCall = Callable[[], None] | None


@dataclass(frozen=True)
class UnetCall:
    """One UNet call of a trajectory, both guidance branches, with the baseline's answer."""

    sample: Array  # float32 [2, 4, h/8, w/8]
    timestep: float
    encoder_hidden_states: Array  # float32 [2, 77, d]
    noise: Array  # float32, as sample


def record_calls(
    baseline: Pipeline,
    prompts: Sequence[Prompt],
    seed: int,
    settings: Settings,
    on_call: OnCall = None,
) -> list[UnetCall]:
    """Denoises the prompts with the baseline and returns all of its UNet calls, in order."""
    calls: list[UnetCall] = []

    def recorded(sample: Array, timestep: float, encoder_hidden_states: Array) -> Array:
        noise = baseline.unet(sample, timestep, encoder_hidden_states)
        # The text is the same array at every step of a prompt, and nobody writes to it.
        calls.append(UnetCall(sample.copy(), timestep, encoder_hidden_states, noise.copy()))
        if on_call:
            on_call()
        return noise

    for index, prompt in enumerate(prompts):
        negative = prompt.negative or ""
        unconditional, conditional = baseline.encode([negative, prompt.text], settings)
        baseline.denoise(
            baseline.begin(Job(prompt.text, negative, seed + index), settings),
            conditional[None],
            unconditional[None],
            settings,
            unet=recorded,
        )
    return calls


def save_calls(calls: Sequence[UnetCall], file: Path) -> None:
    """Writes the calls of one prompt, which all have the same text, to a .npz file."""
    with written_whole(file) as stream:
        np.savez(
            stream,
            allow_pickle=False,
            samples=np.array([call.sample for call in calls]),
            timesteps=np.array([call.timestep for call in calls]),
            text=calls[0].encoder_hidden_states,
            noises=np.array([call.noise for call in calls]),
        )


def load_calls(file: Path) -> list[UnetCall]:
    """Reads what `save_calls` wrote."""
    with np.load(file) as stored:
        text = stored["text"]
        columns = (stored["samples"], stored["timesteps"].tolist(), stored["noises"])
        return [UnetCall(one, step, text, noise) for one, step, noise in zip(*columns, strict=True)]


def unet_sqnr(
    candidate: Pipeline, calls: Sequence[UnetCall], on_call: OnCall = None
) -> dict[int, float]:
    """Returns the mean SQNR in dB at each timestep of the schedule, first timestep first."""
    values: dict[int, list[float]] = defaultdict(list)
    for call in calls:
        actual = candidate.unet(call.sample, call.timestep, call.encoder_hidden_states)
        values[round(call.timestep)].append(sqnr_db(call.noise, actual))
        if on_call:
            on_call()
    return {timestep: float(np.mean(dbs)) for timestep, dbs in values.items()}
