"""Records what the components see while the FP pipeline draws the calibration prompts.

UNet inputs are taken at timesteps stratified over the whole trajectory, because activation ranges
drift from step to step (Q-Diffusion, arXiv:2302.04304), and from both guidance branches. The text
encoder's token ids and the final latents are kept as well, so that every component that denoising
exercises can be calibrated. Nothing is decoded.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from sdcompress.errors import CalibrationError, SdcompressError
from sdcompress.prompts import Prompt
from sdcompress.quiet import quiet_libraries
from sdcompress.recipe import Calibrate
from sdcompress.runtime import Job, Pipeline, Settings
from sdcompress.runtime.denoise import Unet
from sdcompress.store import written_whole

BRANCHES = ("unconditional", "conditional")
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class CalibrationSet:
    """Recorded inputs: one Arrow dataset for each component under `folder`."""

    folder: Path
    samples: int


@dataclass
class _Recorder:
    """A UNet callable that passes calls through and keeps copies of the wanted ones' inputs."""

    unet: Unet
    wanted: frozenset[int]
    on_call: Callable[[int], None]
    branches: int = 0
    calls: int = 0

    def __post_init__(self) -> None:
        self.samples: list[Array] = []
        self.steps: list[int] = []
        self.timesteps: list[float] = []

    def __call__(self, sample: Array, timestep: float, encoder_hidden_states: Array) -> Array:
        self.branches = len(sample)
        if self.calls in self.wanted:
            self.samples.append(sample.copy())
            self.steps.append(self.calls)
            self.timesteps.append(timestep)
        self.calls += 1
        noise = self.unet(sample, timestep, encoder_hidden_states)
        self.on_call(self.calls)
        return noise


def calibrate(
    pipeline: Pipeline,
    prompts: Sequence[Prompt],
    options: Calibrate,
    settings: Settings,
    folder: Path,
    on_call: Callable[[int, int], None] | None = None,
) -> CalibrationSet:
    """Denoises the prompts and writes `unet`, `text_encoder` and `vae_decoder` Arrow datasets.

    UNet rows: sample float32 [4, h/8, w/8], timestep float, encoder_hidden_states float32 [77, d],
    branch, step, prompt. Each prompt is on disk before the next begins; one that is there is not
    denoised again. Time is saved by remembered layers, not by fewer steps, which would leave out
    the timesteps with the least noise. Raises CalibrationError when an input is not finite.
    """
    branches = 2 if settings.guided else 1
    calls = len(pipeline.plan(settings))
    settings = replace(settings, cache_interval=options.cache_interval)
    plan = stratified_steps(options.samples // branches, len(prompts), calls, options.seed)
    recorded = folder / "recorded"
    recorded.mkdir(parents=True, exist_ok=True)
    files = [recorded / f"{index:05d}.npz" for index in range(len(prompts))]
    finished = calls * sum(file.exists() for file in files)

    def count(done: int) -> None:
        if on_call:
            on_call(finished + done, calls * len(prompts))

    count(0)
    for index, (prompt, wanted, file) in enumerate(zip(prompts, plan, files, strict=True)):
        if not file.exists():
            seed = options.seed + index
            arrays = _record(pipeline, prompt, wanted, seed, settings, count)
            with written_whole(file) as stream:
                np.savez(stream, allow_pickle=False, **arrays)
            finished += calls
    for component, rows in (
        ("unet", _unet_rows(files, prompts)),
        ("text_encoder", ({"input_ids": ids} for file in files for ids in _array(file, "ids"))),
        ("vae_decoder", ({"latent_sample": _array(file, "latents")} for file in files)),
    ):
        for left in (folder / component, _buffer(folder / component)):
            shutil.rmtree(left, ignore_errors=True)  # by a run that was killed here
        write_rows(rows, folder / component)
    return CalibrationSet(folder, sum(branches * len(wanted) for wanted in plan))


def _record(
    pipeline: Pipeline,
    prompt: Prompt,
    wanted: frozenset[int],
    seed: int,
    settings: Settings,
    on_call: Callable[[int], None],
) -> dict[str, Array]:
    """Denoises one prompt; returns the wanted UNet inputs and what the other components see."""
    negative = prompt.negative or ""
    unconditional, conditional = pipeline.encode([negative, prompt.text], settings)
    recorder = _Recorder(pipeline.network(settings), wanted, on_call)
    latents = pipeline.denoise(
        pipeline.begin(Job(prompt.text, negative, seed), settings),
        conditional[None],
        unconditional[None],
        settings,
        unet=recorder,
    )
    _check_finite(latents, prompt, "final latents")
    for step, sample in zip(recorder.steps, recorder.samples, strict=True):
        _check_finite(sample, prompt, f"latents at step {step}")
    return {
        "ids": np.asarray(pipeline.prompts.tokenize([negative, prompt.text])),
        "latents": latents[0] / pipeline.scaling_factor,
        "samples": np.array(recorder.samples),
        "steps": np.array(recorder.steps),
        "timesteps": np.array(recorder.timesteps),
        "embeddings": np.stack([unconditional, conditional])[-recorder.branches :],
    }


def _unet_rows(files: Sequence[Path], prompts: Sequence[Prompt]) -> Iterator[dict[str, Any]]:
    """Reads the UNet's inputs back, one guidance branch of one call a row."""
    for file, prompt in zip(files, prompts, strict=True):
        with np.load(file) as arrays:
            embeddings, samples = arrays["embeddings"], arrays["samples"]
            steps, timesteps = arrays["steps"].tolist(), arrays["timesteps"].tolist()
        branches = BRANCHES[-len(embeddings) :]
        for step, timestep, sample in zip(steps, timesteps, samples, strict=True):
            for name, embedding, latents in zip(branches, embeddings, sample, strict=True):
                yield {
                    "sample": latents,
                    "timestep": timestep,
                    "encoder_hidden_states": embedding,
                    "branch": name,
                    "step": step,
                    "prompt": prompt.text,
                }


def _array(file: Path, name: str) -> Array:
    with np.load(file) as arrays:
        return np.asarray(arrays[name])


def _check_finite(values: Array, prompt: Prompt, what: str) -> None:
    if not np.isfinite(values).all():
        raise CalibrationError(
            f"{what} are not finite for the prompt '{prompt.text}': the baseline model itself "
            "overflows; check its weights, or run with --device CPU"
        )


def stratified_steps(calls: int, prompts: int, steps: int, seed: int) -> list[frozenset[int]]:
    """Assigns UNet calls to prompts so that the set covers the trajectory evenly.

    The trajectory is cut into `calls` equal strata. Prompt j records strata j, j + prompts, ...,
    each at the same jittered place, so every prompt spans the trajectory and no step repeats.
    Returns one set of step indices for each prompt. Raises CalibrationError when more calls are
    wanted than there are.
    """
    if calls > prompts * steps:
        raise CalibrationError(
            f"calibrate.samples asks for {calls} UNet calls, but {prompts} prompts of {steps} "
            f"steps make only {prompts * steps}: raise calibrate.prompts or lower samples"
        )
    order = np.random.default_rng(seed)
    first_stratum = order.permutation(prompts)
    jitter = order.random(prompts)
    plan = []
    for first, offset in zip(first_stratum, jitter, strict=True):
        strata = np.arange(first, calls, prompts)
        plan.append(frozenset(int((stratum + offset) * steps / calls) for stratum in strata))
    return plan


def write_rows(rows: Iterator[dict[str, Any]], folder: Path) -> None:
    """Streams rows of numpy arrays and plain values into an Arrow dataset at `folder`."""
    from datasets import Dataset
    from datasets.exceptions import DatasetGenerationError

    first = next(rows)
    buffer = _buffer(folder)
    try:
        with quiet_libraries("datasets"):
            dataset = Dataset.from_generator(
                lambda: chain([first], rows),
                features=_features(first),
                cache_dir=str(buffer),
                fingerprint=folder.name,
                writer_batch_size=16,
            )
            dataset.save_to_disk(folder)
    except DatasetGenerationError as wrapper:
        if isinstance(wrapper.__cause__, SdcompressError | OSError):
            raise wrapper.__cause__ from None
        raise
    del dataset  # unmaps the buffer, which Windows cannot delete while it is open
    shutil.rmtree(buffer)


def _buffer(folder: Path) -> Path:
    return folder.with_suffix(".buffer")


_INPUTS = {
    "unet": {"sample": "f4", "timestep": "i8", "encoder_hidden_states": "f4"},
    "text_encoder": {"input_ids": "i8"},
    "vae_decoder": {"latent_sample": "f4"},
}


@dataclass(frozen=True)
class ModelInputs:
    """Recorded rows of one component as model inputs, read from disk as they are iterated.

    `batch` rows make a model input: a UNet of fixed batch 2 gets what it gets when drawing, both
    branches of one call. Can be iterated again and again, as NNCF does.
    """

    folder: Path
    component: str
    batch: int = 1

    @cached_property
    def _dataset(self) -> Any:
        from datasets import Dataset

        return Dataset.load_from_disk(self.folder / self.component).with_format("numpy")

    def __len__(self) -> int:
        return len(self._dataset) // self.batch

    def __iter__(self) -> Iterator[dict[str, Array]]:
        for rows in self._dataset.iter(self.batch, drop_last_batch=True):
            yield self._inputs(rows)

    def at(self, index: int) -> dict[str, Array]:
        """One model input, as iterating yields it."""
        return self._inputs(self._dataset[index * self.batch : (index + 1) * self.batch])

    def timesteps(self) -> Array:
        """Of each model input of the UNet, float64 [n]."""
        column = np.asarray(self._dataset["timestep"][:], "f8")
        return column[:: self.batch][: len(self)]

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "component": self.component, "batch": self.batch}

    def _inputs(self, rows: Any) -> dict[str, Array]:
        types = _INPUTS[self.component]
        return {name: self._input(rows[name], kind) for name, kind in types.items()}

    def _input(self, values: Any, kind: str) -> Array:
        # Euler's timesteps lie between two of training; the model's file declares whole ones.
        stacked = np.asarray(np.rint(values) if kind == "i8" else values, kind)
        return stacked[:1] if stacked.ndim == 1 else stacked  # one timestep for the whole batch


def _features(row: dict[str, Any]) -> Any:
    from datasets import Array2D, Array3D, Features, List, Value

    def feature(value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            return Value({int: "int64", float: "float64", str: "string"}[type(value)])
        if value.ndim == 1:
            return List(Value(str(value.dtype)), length=len(value))
        return (Array2D if value.ndim == 2 else Array3D)(shape=value.shape, dtype=str(value.dtype))

    return Features({name: feature(value) for name, value in row.items()})
