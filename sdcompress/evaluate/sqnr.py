"""Signal-to-quantization-noise ratio of the denoising, timestep by timestep.

10 log10(|y|² / |y - y'|²) in dB, over both guidance branches. Of the UNet's output, when all UNets
get the inputs of the baseline's own trajectory: the error of one call. And of the latents after
each call, when each side goes its own way from the same noise: what the errors add up to. One model
is open at a time. The decoders are compared apart from that, on the same clean latents.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sdcompress.evaluate.picture_tensor import load_tensor
from sdcompress.evaluate.pictures import BASELINE_PRECISION, Shot, Variant
from sdcompress.evaluate.records import Sqnr
from sdcompress.evaluate.ssim import ssim
from sdcompress.progress import Advance
from sdcompress.runtime import Job, Pipeline, Settings, save_png
from sdcompress.runtime.denoise import Unet
from sdcompress.store import read_record, write_record, written_whole

Array = np.ndarray[Any, Any]
OnCall = Callable[[], None] | None
ByTimestep = dict[int, float]

_PICTURE = ".png"
MIDDLE_CALL = "middle_call"
"""The file that `measure_sqnr` leaves: a call in the middle of the first prompt's trajectory."""

CEILING_DB = 100.0
"""Equal arrays have an infinite ratio, which JSON cannot hold."""


@dataclass(frozen=True)
class UnetCall:
    """One UNet call of a trajectory, both guidance branches, with the UNet's answer."""

    sample: Array  # float32 [2, 4, h/8, w/8]
    timestep: float
    encoder_hidden_states: Array  # float32 [2, 77, d]
    noise: Array  # float32, as sample


@dataclass(frozen=True)
class Trajectory:
    """All UNet calls of one picture, in order, and the clean latents they end in."""

    calls: tuple[UnetCall, ...]
    clean: Array  # float32 [1, 4, h/8, w/8]

    def after_calls(self) -> list[Array]:
        """The latents after each call, which the next call gets."""
        return [*(call.sample[:1] for call in self.calls[1:]), self.clean]

    def middle(self) -> "Trajectory":
        """The call half way alone."""
        return Trajectory((self.calls[len(self.calls) // 2],), self.clean)

    def save(self, file: Path) -> None:
        """Writes a .npz file; the text is the same at every step, and is written once."""
        with written_whole(file) as stream:
            np.savez(
                stream,
                allow_pickle=False,
                samples=np.array([call.sample for call in self.calls]),
                timesteps=np.array([call.timestep for call in self.calls]),
                text=self.calls[0].encoder_hidden_states,
                noises=np.array([call.noise for call in self.calls]),
                clean=self.clean,
            )

    @classmethod
    def load(cls, file: Path) -> "Trajectory":
        """Reads what `save` wrote."""
        with np.load(file) as stored:
            text = stored["text"]
            columns = (stored["samples"], stored["timesteps"].tolist(), stored["noises"])
            calls = tuple(
                UnetCall(one, step, text, noise) for one, step, noise in zip(*columns, strict=True)
            )
            return cls(calls, stored["clean"])


def sqnr_db(reference: Array, value: Array) -> float:
    """Signal-to-quantization-noise ratio 10 log10(|reference|² / |reference - value|²), in dB.

    At most `CEILING_DB`, the value of equal arrays.
    """
    noise = float(np.square(reference - value, dtype=np.float64).sum())
    signal = float(np.square(reference, dtype=np.float64).sum())
    if noise <= signal * 10 ** (-CEILING_DB / 10):
        return CEILING_DB
    return 10 * float(np.log10(signal / noise))


def trace(pipeline: Pipeline, shot: Shot, settings: Settings, on_call: OnCall = None) -> Trajectory:
    """Denoises one picture and returns all of its UNet calls."""
    calls: list[UnetCall] = []

    def recorded(sample: Array, timestep: float, encoder_hidden_states: Array) -> Array:
        noise = pipeline.unet(sample, timestep, encoder_hidden_states)
        # The text is the same array at every step of a prompt, and nobody writes to it.
        calls.append(UnetCall(sample.copy(), timestep, encoder_hidden_states, noise.copy()))
        if on_call:
            on_call()
        return noise

    clean = denoise_shot(pipeline, shot, settings, recorded)
    return Trajectory(tuple(calls), clean)


def denoise_shot(pipeline: Pipeline, shot: Shot, settings: Settings, unet: Unet) -> Array:
    """Denoises one picture with a UNet of the caller's; clean latents float32 [1, 4, h/8, w/8]."""
    negative = shot.prompt.negative or ""
    unconditional, conditional = pipeline.encode([negative, shot.prompt.text], settings)
    start = pipeline.begin(Job(shot.prompt.text, negative, shot.seed), settings)
    return pipeline.denoise(start, conditional[None], unconditional[None], settings, unet=unet)


def unet_sqnr(candidate: Pipeline, calls: Sequence[UnetCall], on_call: OnCall = None) -> ByTimestep:
    """The mean SQNR of a UNet's answers in dB at each timestep, first timestep first."""
    values: dict[int, list[float]] = defaultdict(list)
    for call in calls:
        actual = candidate.unet(call.sample, call.timestep, call.encoder_hidden_states)
        values[round(call.timestep)].append(sqnr_db(call.noise, actual))
        if on_call:
            on_call()
    return _means(values)


def latent_sqnr(baseline: Trajectory, candidate: Trajectory) -> ByTimestep:
    """The mean SQNR of the latents in dB after the calls at each timestep."""
    values: dict[int, list[float]] = defaultdict(list)
    ours = zip(baseline.calls, baseline.after_calls(), candidate.after_calls(), strict=True)
    for call, before, after in ours:
        values[round(call.timestep)].append(sqnr_db(before, after))
    return _means(values)


@dataclass(frozen=True)
class _Found:
    """What is kept of one prompt and one variant."""

    unet_db: ByTimestep
    latents_db: ByTimestep


def measure_sqnr(
    baseline: Variant, candidate: Variant, shots: Sequence[Shot], folder: Path, on_call: Advance
) -> Sqnr:
    """Measures the candidate's parts and, as a floor, the baseline in the candidate's precision.

    What is measured of a prompt is kept in `folder`, and not measured again; `MIDDLE_CALL` stays.
    """
    pipeline = baseline.open()
    steps = len(pipeline.plan(baseline.settings))
    kept = len([*folder.glob("*.npz")]) + 2 * len([*folder.glob("*/*.json")])
    total = 5 * len(shots) * steps
    advance = _counting(on_call, steps * kept, total)
    files = [folder / f"{index:05d}.npz" for index in range(len(shots))]
    for shot, file in zip(shots, files, strict=True):
        if not file.exists():
            reference = trace(pipeline, shot, baseline.settings, advance)
            _save_picture(pipeline, reference.clean, baseline.settings, file.with_suffix(_PICTURE))
            reference.save(file)
    del pipeline
    pipeline = candidate.open()
    measured = _over(pipeline, candidate.settings, shots, files, folder / "candidate", advance)
    decoded = tuple(_decoded(pipeline, baseline.settings, files, folder / "candidate"))
    in_force = pipeline.execution_precisions("unet")["unet"]
    precision = candidate.execution_precision or in_force
    del pipeline
    floor = _Found({}, {})
    if precision not in (BASELINE_PRECISION, "unknown"):  # virtual devices do not tell
        rounded = Variant(baseline.folder, baseline.device, precision, baseline.settings)
        floor = _over(rounded.open(), rounded.settings, shots, files, folder / "floor", advance)
    middle = Trajectory.load(files[0]).middle()
    middle.save(folder / MIDDLE_CALL)
    for file in files:
        file.unlink()
        file.with_suffix(_PICTURE).unlink()
    on_call(total, total)
    return Sqnr(measured.unet_db, floor.unet_db, measured.latents_db, floor.latents_db, decoded)


def _decoded(
    pipeline: Pipeline, settings: Settings, files: Sequence[Path], folder: Path
) -> Iterator[float]:
    """SSIM of what a decoder makes of each trajectory's clean latents; it is kept in `folder`."""
    for file in files:
        kept = folder / f"{file.stem}{_PICTURE}"
        if not kept.exists():
            _save_picture(pipeline, Trajectory.load(file).clean, settings, kept)
        yield ssim(load_tensor(file.with_suffix(_PICTURE)), load_tensor(kept))


def _save_picture(pipeline: Pipeline, clean: Array, settings: Settings, file: Path) -> None:
    (picture,) = pipeline.decode(clean, settings)
    save_png(Image.fromarray(picture), file, {})


def _over(
    pipeline: Pipeline,
    settings: Settings,
    shots: Sequence[Shot],
    files: Sequence[Path],
    folder: Path,
    advance: Callable[[], None],
) -> _Found:
    """The mean of all prompts at each timestep; a prompt's own figures are kept in `folder`."""
    folder.mkdir(exist_ok=True)
    found = []
    for shot, file in zip(shots, files, strict=True):
        kept = folder / f"{file.stem}.json"
        if not kept.exists():
            reference = Trajectory.load(file)
            unet = unet_sqnr(pipeline, reference.calls, advance)
            own = trace(pipeline, shot, settings, advance)
            write_record(kept, _Found, _Found(unet, latent_sqnr(reference, own)))
        found.append(read_record(kept, _Found))
    return _Found(
        _mean_over([one.unet_db for one in found]), _mean_over([one.latents_db for one in found])
    )


def _counting(on_call: Advance, done: int, total: int) -> Callable[[], None]:
    """Tells what was done before, at once so that it does not count as speed; then counts on."""
    if done:
        on_call(done, total)
    numbers = count(done + 1)
    return lambda: on_call(next(numbers), total)


def _means(values: dict[int, list[float]]) -> ByTimestep:
    return {timestep: float(np.mean(dbs)) for timestep, dbs in values.items()}


def _mean_over(figures: Sequence[ByTimestep]) -> ByTimestep:
    return {step: float(np.mean([one[step] for one in figures])) for step in figures[0]}
