"""Records what the components see while the FP pipeline draws the calibration prompts.

UNet inputs are taken at timesteps stratified over the whole trajectory, because activation ranges
drift from step to step (Q-Diffusion, arXiv:2302.04304), and from both guidance branches. The text
encoder's token ids and the final latents are kept as well, so that every component that denoising
exercises can be calibrated. Nothing is decoded.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from sdcompress.errors import CalibrationError, SdcompressError
from sdcompress.prompts import Prompt
from sdcompress.quiet import quiet_libraries
from sdcompress.recipe import Calibrate
from sdcompress.runtime import Job, Pipeline, Settings

BRANCHES = ("unconditional", "conditional")
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class CalibrationSet:
    """Recorded inputs: one Arrow dataset for each component under `folder`."""

    folder: Path
    samples: int


@dataclass
class _Recorder:
    """A UNet callable that passes calls through and yields copies of the wanted ones."""

    pipeline: Pipeline
    wanted: frozenset[int]
    calls: int = 0

    def __post_init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def __call__(self, sample: Array, timestep: float, encoder_hidden_states: Array) -> Array:
        if self.calls in self.wanted:
            for branch in range(len(sample)):
                self.rows.append(
                    {
                        "sample": sample[branch].copy(),
                        "timestep": timestep,
                        "encoder_hidden_states": encoder_hidden_states[branch].copy(),
                        "branch": BRANCHES[branch] if len(sample) > 1 else BRANCHES[1],
                        "step": self.calls,
                    }
                )
        self.calls += 1
        return self.pipeline.unet(sample, timestep, encoder_hidden_states)


def calibrate(
    pipeline: Pipeline,
    prompts: Sequence[Prompt],
    options: Calibrate,
    settings: Settings,
    folder: Path,
    on_prompt: Callable[[int, int], None] | None = None,
) -> CalibrationSet:
    """Denoises the prompts and writes `unet`, `text_encoder` and `vae_decoder` Arrow datasets.

    UNet rows: sample float32 [4, h/8, w/8], timestep float, encoder_hidden_states float32 [77, d],
    branch, step, prompt. Raises CalibrationError when an input is not finite.
    """
    branches = 2 if settings.guided else 1
    calls = len(pipeline.plan(settings))
    plan = stratified_steps(options.samples // branches, len(prompts), calls, options.seed)
    rest = _Rest([], [])
    count = 0

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal count
        for index, (prompt, wanted) in enumerate(zip(prompts, plan, strict=True)):
            for row in _record(pipeline, prompt, wanted, options.seed + index, settings, rest):
                count += 1
                yield row
            if on_prompt:
                on_prompt(index + 1, len(prompts))

    write_rows(rows(), folder / "unet")
    write_rows(({"input_ids": ids} for ids in rest.token_ids), folder / "text_encoder")
    write_rows(({"latent_sample": latents} for latents in rest.latents), folder / "vae_decoder")
    return CalibrationSet(folder, count)


@dataclass(frozen=True)
class _Rest:
    """What the other components see, one entry a prompt."""

    token_ids: list[Array]
    latents: list[Array]


def _record(
    pipeline: Pipeline,
    prompt: Prompt,
    wanted: frozenset[int],
    seed: int,
    settings: Settings,
    rest: _Rest,
) -> Iterator[dict[str, Any]]:
    negative = prompt.negative or ""
    unconditional, conditional = pipeline.encode([negative, prompt.text], settings)
    recorder = _Recorder(pipeline, wanted)
    latents = pipeline.denoise(
        pipeline.begin(Job(prompt.text, negative, seed), settings),
        conditional[None],
        unconditional[None],
        settings,
        unet=recorder,
    )
    _check_finite(latents, prompt, "final latents")
    rest.token_ids.extend(pipeline.tokenize([negative, prompt.text]))
    rest.latents.append(latents[0] / pipeline.scaling_factor)
    for row in recorder.rows:
        _check_finite(row["sample"], prompt, f"latents at step {row['step']}")
        yield row | {"prompt": prompt.text}


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
    buffer = folder.with_suffix(".buffer")
    try:
        with quiet_libraries():
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


def read_inputs(folder: Path, component: str, batch: int = 1) -> "ModelInputs":
    """Opens the recorded inputs of one component, `batch` rows to a model input.

    A UNet of fixed batch 2 gets what it gets when drawing: both branches of one call.
    """
    from datasets import Dataset

    dataset = Dataset.load_from_disk(folder / component).with_format("numpy")
    return ModelInputs(dataset, _INPUTS[component], batch)


_INPUTS = {
    "unet": {"sample": "f4", "timestep": "i8", "encoder_hidden_states": "f4"},
    "text_encoder": {"input_ids": "i8"},
    "vae_decoder": {"latent_sample": "f4"},
}


@dataclass(frozen=True)
class ModelInputs:
    """Recorded rows as model inputs. Can be iterated again and again, as NNCF does."""

    dataset: Any
    types: dict[str, str]
    batch: int = 1

    def __len__(self) -> int:
        return len(self.dataset) // self.batch

    def __iter__(self) -> Iterator[dict[str, Array]]:
        for rows in self.dataset.iter(self.batch, drop_last_batch=True):
            yield {name: self._input(rows[name], kind) for name, kind in self.types.items()}

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
