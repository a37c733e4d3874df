"""Estimates, before long work begins, how much memory, disk and time a run will take.

Memory follows from the sizes of the model's parts and from what each stage holds of them. Time is
the model's multiply-accumulates over the speed of this machine, which a convolution of the model's
kind is run for. The factors below were fitted to measured runs of a full-size Stable Diffusion 2.1
(docs/benchmarks.md compares estimate and measurement).
"""

import os
import shutil
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openvino as ov
import psutil
from openvino import opset13 as opset

from sdcompress.architecture import Architecture
from sdcompress.errors import PreflightError
from sdcompress.recipe import COMPONENTS, ActivationQuantization, Fp16, Recipe

# Resident bytes of a process before it has read a model.
_RUNTIME_BYTES = 0.15e9
_NNCF_BYTES = 0.28e9
_TORCH_BYTES = 0.60e9
_TRACING_BYTES = 0.46e9
_ACTIVATION_BYTES = 0.30e9
# float32 copies of weights that SmoothQuant holds, in bytes a parameter of the UNet.
_SMOOTHING_BYTES = 2.3
_WEIGHT_COMPRESSION_BYTES = 1.1
_STATISTIC_BYTES = 11.1  # an item's statistics on disk, a channel that a layer reads or returns
# What a whole network reaches of the speed of one convolution, by execution precision.
_EFFICIENCY = {"f32": 0.80, "bf16": 0.80}
# A quantized network against one in the device's own floating-point precision, time a step.
_QUANTIZED = {"int8": 0.62, "hybrid": 0.75}
_CONVERT_SECONDS = 20.0  # libraries and tokenizer
_CONVERT_SECONDS_BYTE = 10e-9
_LOAD_SECONDS = 12.0
_COMPRESS_SECONDS_PARAMETER = {"int8": 55e-9, "hybrid": 55e-9, "int8_weights": 25e-9}


@dataclass(frozen=True)
class Speed:
    """Multiply-accumulates a second of one convolution on this machine, by precision."""

    f32: float
    native: float  # the precision the device picks by itself


@dataclass(frozen=True)
class StageEstimate:
    """What one kind of stage is expected to take. Seconds are those of all its runs together."""

    name: str
    detail: str
    seconds: float
    peak_rss_bytes: float


@dataclass(frozen=True)
class Estimate:
    """What a run is expected to take, without what is finished already."""

    stages: tuple[StageEstimate, ...]
    disk_bytes: float

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)

    @property
    def peak_rss_bytes(self) -> float:
        return max(stage.peak_rss_bytes for stage in self.stages)


def measure_speed(device: str = "CPU") -> Speed:
    """Times one convolution of 320 channels in 64 x 64, as diffusion UNets have them; seconds."""
    return Speed(_macs_per_second(device, "f32"), _macs_per_second(device, None))


def _macs_per_second(device: str, precision: str | None) -> float:
    channels, size = 320, 64
    random = np.random.default_rng(0)
    picture = opset.parameter([2, channels, size, size], np.float32)
    values: ov.Output = picture.output(0)
    layers = 3
    for _ in range(layers):
        weights = random.standard_normal((channels, channels, 3, 3), dtype=np.float32) / 54
        values = opset.convolution(values, weights, [1, 1], [1, 1], [1, 1], [1, 1]).output(0)
    config = {"INFERENCE_PRECISION_HINT": precision} if precision else {}
    request = (
        ov.Core()
        .compile_model(ov.Model([values], [picture]), device, config)
        .create_infer_request()
    )
    feed = random.standard_normal((2, channels, size, size), dtype=np.float32)
    request.infer([feed])
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        request.infer([feed])
        seconds.append(time.perf_counter() - start)
    return 2 * layers * 9 * (channels * size) ** 2 / min(seconds)


def estimate(
    recipe: Recipe, model: Architecture, speed: Speed, finished: Collection[str] = ()
) -> Estimate:
    """Puts a run's stages together from what the recipe asks for.

    `finished` names the stages, of convert, calibrate, ranges and compress, that are done.
    """
    work = _Work(recipe, model, speed)
    stages = tuple(stage for stage in work.stages() if stage.name not in finished)
    return Estimate(stages, work.disk_bytes(finished))


@dataclass(frozen=True)
class _Work:
    """A recipe on a model on a machine."""

    recipe: Recipe
    model: Architecture
    speed: Speed

    def stages(self) -> Iterator[StageEstimate]:
        recipe, model = self.recipe, self.model
        stored = sum(part.stored_bytes for part in model.parts)
        yield StageEstimate(
            "convert",
            "checkpoint to OpenVINO IR",
            _CONVERT_SECONDS + _CONVERT_SECONDS_BYTE * stored,
            _TORCH_BYTES + _TRACING_BYTES + max(self._ir_bytes(part) for part in COMPONENTS),
        )
        if recipe.compress.needs_calibration:
            calls = recipe.calibrate.prompts * recipe.sampling.unet_calls
            yield StageEstimate(
                "calibrate",
                f"{calls} UNet calls",
                _LOAD_SECONDS + calls * self._step_seconds("f32"),
                self._pipeline_bytes(4),
            )
            precision = recipe.calibrate.statistics
            unet = model.unet
            yield StageEstimate(
                "ranges",
                f"{recipe.calibrate.samples} inputs",
                _LOAD_SECONDS
                + recipe.calibrate.samples * self._step_seconds(precision) / self._branches,
                _RUNTIME_BYTES
                + _ACTIVATION_BYTES
                + (4 if precision == "f32" else 2) * unet.parameters
                + self._ir_bytes("unet"),
            )
        yield from self._compressions()
        yield from self._evaluation()

    def _compressions(self) -> Iterator[StageEstimate]:
        for component in COMPONENTS:
            options = self.recipe.compress.method_of(component)
            parameters = self._parameters(component)
            quantizes = isinstance(options, ActivationQuantization)
            extra = _SMOOTHING_BYTES if quantizes else _WEIGHT_COMPRESSION_BYTES
            held = 0.0 if isinstance(options, Fp16) else extra * parameters
            seconds = _COMPRESS_SECONDS_PARAMETER.get(options.method, 4e-9) * parameters
            yield StageEstimate(
                "compress",
                f"{component}: {options.method}",
                5 + seconds,
                _NNCF_BYTES + self._ir_bytes(component) + held,
            )

    def _evaluation(self) -> Iterator[StageEstimate]:
        evaluate, calls = self.recipe.evaluate, self.recipe.sampling.unet_calls
        method = self.recipe.compress.unet.method
        baseline = calls * self._step_seconds("f32") + self._decode_seconds("f32")
        quick = calls * self._step_seconds("bf16") * _QUANTIZED.get(method, 1.0)
        candidate = quick + self._decode_seconds("bf16")
        peak = self._pipeline_bytes(4)
        pictures = evaluate.prompts
        yield StageEstimate(
            "draw", f"2 x {pictures} pictures", 25 + pictures * (baseline + candidate), peak
        )
        floor = calls * self._step_seconds("bf16")
        prompts = evaluate.sqnr_prompts
        yield StageEstimate(
            "sqnr",
            f"{prompts} prompts",
            35 + prompts * (calls * self._step_seconds("f32") + quick + floor),
            peak,
        )
        rounds = evaluate.timed_images
        yield StageEstimate(
            "measure",
            f"2 x {rounds} processes",
            rounds * (25 + 2 * (baseline + candidate)),
            peak,
        )

    def disk_bytes(self, finished: Collection[str]) -> float:
        """The store and the result: IR, statistics, and the compressed parts twice."""
        recipe, model = self.recipe, self.model
        compressed = 0.0
        for component in COMPONENTS:
            method = recipe.compress.method_of(component).method
            compressed += (2.0 if method == "fp16" else 1.0) * self._parameters(component)
        total = compressed if "compress" in finished else 2 * compressed
        if "convert" not in finished:
            total += sum(self._ir_bytes(component) for component in COMPONENTS)
        if recipe.compress.needs_calibration and "ranges" not in finished:
            total += recipe.calibrate.samples * _STATISTIC_BYTES * model.unet_channels
        return total

    @property
    def _branches(self) -> int:
        return 2 if self.recipe.sampling.guidance_scale > 1.0 else 1

    def _step_seconds(self, precision: str) -> float:
        speed = self.speed.f32 if precision == "f32" else self.speed.native
        return self._branches * self.model.unet_macs / (speed * _EFFICIENCY[precision])

    def _decode_seconds(self, precision: str) -> float:
        speed = self.speed.f32 if precision == "f32" else self.speed.native
        return self.model.vae_decoder_macs / (speed * _EFFICIENCY[precision])

    def _parameters(self, component: str) -> float:
        """Half of the VAE is its decoder, roughly."""
        model = self.model
        if component.startswith("vae"):
            return model.vae.parameters * (0.59 if component == "vae_decoder" else 0.41)
        return model.unet.parameters if component == "unet" else model.text_encoder.parameters

    def _ir_bytes(self, component: str) -> float:
        """The size of a component's .bin."""
        part = component.split("_", maxsplit=1)[0]
        size = {"text": self.model.text_encoder, "unet": self.model.unet, "vae": self.model.vae}[
            part
        ]
        stored = (
            4.0 if self.recipe.convert.weights == "fp32" else size.stored_bytes / size.parameters
        )
        return stored * self._parameters(component)

    def _pipeline_bytes(self, bytes_per_weight: int) -> float:
        """The runtime with all parts that draw compiled, and their files mapped."""
        drawing = ("text_encoder", "unet", "vae_decoder")
        weights = sum(bytes_per_weight * self._parameters(one) for one in drawing)
        mapped = sum(self._ir_bytes(one) for one in drawing)
        return _RUNTIME_BYTES + _ACTIVATION_BYTES + weights + mapped


def require_room(expected: Estimate, folder: Path) -> None:
    """Raises PreflightError when memory or disk do not suffice for a run writing to `folder`."""
    faults = []
    memory = available_memory_bytes()
    if expected.peak_rss_bytes > memory:
        worst = max(expected.stages, key=lambda stage: stage.peak_rss_bytes)
        faults.append(
            f"memory: {worst.name} ({worst.detail}) needs about "
            f"{expected.peak_rss_bytes / 1e9:.1f} GB, {memory / 1e9:.1f} GB are free: close other "
            "programs, or use a machine with more"
        )
    free = shutil.disk_usage(_existing(folder)).free
    if expected.disk_bytes > free:
        faults.append(
            f"disk: the run writes about {expected.disk_bytes / 1e9:.1f} GB, {free / 1e9:.1f} GB "
            f"are free at {folder}: free some space, or write to another disk with --output"
        )
    if faults:
        raise PreflightError(
            "this run does not fit:\n  "
            + "\n  ".join(faults)
            + "\n--ignore-preflight starts it nevertheless"
        )


def available_memory_bytes() -> int:
    """Memory that can be used without swapping, within the limit of a Linux control group."""
    available = int(psutil.virtual_memory().available)
    limit = Path("/sys/fs/cgroup/memory.max")
    used = Path("/sys/fs/cgroup/memory.current")
    if os.name == "posix" and limit.exists() and used.exists():
        text = limit.read_text(encoding="ascii").strip()
        if text != "max":
            available = min(available, int(text) - int(used.read_text(encoding="ascii")))
    return available


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder


def describe(expected: Estimate) -> Iterator[str]:
    """Yields the lines of a table for reading."""
    yield f"{'stage':<10} {'what':<28} {'time':>9} {'peak memory':>12}"
    for stage in expected.stages:
        yield (
            f"{stage.name:<10} {stage.detail:<28} {_duration(stage.seconds):>9} "
            f"{stage.peak_rss_bytes / 1e9:>9.1f} GB"
        )
    yield (
        f"{'total':<10} {f'{expected.disk_bytes / 1e9:.1f} GB of disk':<28} "
        f"{_duration(expected.seconds):>9} {expected.peak_rss_bytes / 1e9:>9.1f} GB"
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} m"
    return f"{minutes} m {rest:02} s" if minutes else f"{rest} s"
