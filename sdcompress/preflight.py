"""Estimates, before long work begins, how much memory, disk and time a run will take.

Memory follows from the sizes of the model's parts and from what each stage holds of them. Time is
the model's multiply-accumulates over the speed of this machine, which a convolution of the model's
kind is run for. The factors below were fitted to the measurements of a full-size Stable Diffusion
2.1 in docs/benchmarks.md, which also compares a run with its estimate.
"""

import math
import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sdcompress.activations import PROBES, worth_comparing
from sdcompress.architecture import Architecture
from sdcompress.errors import PreflightError
from sdcompress.evaluate.layer_errors import WATCHED_BYTES
from sdcompress.memory import available_memory_bytes
from sdcompress.methods import COMPONENTS, Mixed, Plain
from sdcompress.recipe import Recipe, Runtime
from sdcompress.runtime.mapping import GIVES_BACK
from sdcompress.speed import Speed

STAGES = (
    "convert", "calibrate", "ranges", "compress", "draw", "sqnr", "layers", "measure", "bundle",
)  # fmt: skip
# Resident bytes of a process before it has read a model, and of the one that waits for it.
_RUNTIME_BYTES = 0.15e9
_WAITING_BYTES = 0.25e9
_NNCF_BYTES = 0.28e9
_TORCH_BYTES = 0.60e9
_TRACING_BYTES = 0.46e9
# What a UNet's and a VAE decoder's activations take, in float32, a pixel of the picture.
_DENOISING_BYTES_PIXEL = 1150
_DECODING_BYTES_PIXEL = 3200
# What a UNet's layers return, in float32, a pixel; so much of it at once, which takes so many
# executions, and memory beside the outputs for what they are made of.
_LAYERS_BYTES_PIXEL = 7220
_LAYERS_ROOM = 2.5
# What compression holds in bytes a parameter.
_HELD_BYTES = {"fp16": 0.0, "smoothed": 3.7, "weights": 1.3, "accurate": 17.0}
_STATISTIC_BYTES = 11.1  # an item's statistics on disk, a channel that a layer reads or returns
# What a whole network reaches of the speed of one convolution, in float32 and in 16 bits.
_EFFICIENCY = {"f32": 0.78, "narrow": 0.66}
_OUTER_LAYERS = 0.17  # the layers outside a skip connection against the whole network
_TINY_DECODER = 0.06  # the distilled decoder against the VAE's
_COLLECTING = 1.15  # a network with its statistics against the network alone, time an item
# A quantized network against one in the device's own floating-point precision, time a step.
_QUANTIZED = {"narrow": {"int8": 0.62, "hybrid": 0.75}, "f32": {"int8": 0.43, "hybrid": 0.61}}
_CONVERT_SECONDS = 14.0  # libraries and tokenizer
_CONVERT_SECONDS_BYTE = 10.5e-9
_LOAD_SECONDS = 22.0
_COMPILE_SECONDS = 10.0
_COMPRESS_SECONDS_PARAMETER = {
    "int8": 80e-9,
    "hybrid": 65e-9,
    "int8_weights": 25e-9,
    "int4_weights": 25e-9,
    "fp16": 4e-9,
}
# Groups of a Stable Diffusion UNet's layers, and how many of them decide on content.
_GROUPS = {"block": 53, "part": 110, "layer": 314}
_CONTENT_SHARE = 0.4
_PARTS_OF_VAE = {"vae_decoder": 0.59, "vae_encoder": 0.41}


@dataclass(frozen=True)
class StageEstimate:
    """What one kind of stage is expected to take. Seconds are those of all its runs together.

    `mapped_bytes` of the peak are weight files, which the system reads again instead of swapping.
    """

    name: str
    detail: str
    seconds: float
    peak_rss_bytes: float
    mapped_bytes: float = 0.0

    @property
    def needed_bytes(self) -> float:
        """Memory without which the stage cannot work."""
        return self.peak_rss_bytes - self.mapped_bytes


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
        return max((stage.peak_rss_bytes for stage in self.stages), default=0.0)

    @property
    def needed_bytes(self) -> float:
        return max((stage.needed_bytes for stage in self.stages), default=0.0)


def estimate(
    recipe: Recipe, model: Architecture, speed: Speed, skipped: Collection[str] = ()
) -> Estimate:
    """Puts a run's stages together from what the recipe asks for.

    `skipped` names the STAGES that are finished or not asked for.
    """
    work = _Work(recipe, model, speed)
    return _without(skipped, work.stages(), work.disk_bytes(skipped))


def estimate_sweep(
    recipe: Recipe,
    model: Architecture,
    speed: Speed,
    skipped: Collection[str] = (),
    *,
    candidates: Sequence[Runtime],
    turns: int,
) -> Estimate:
    """The same for measuring several ways to draw with one model; pictures of each are drawn."""
    work = _Work(recipe, model, speed)
    return _without(skipped, work.swept(candidates, turns), work.disk_bytes(skipped))


def estimate_search(
    recipe: Recipe, model: Architecture, speed: Speed, skipped: Collection[str] = ()
) -> Estimate:
    """The same for a search, without the evaluation of what it finds."""
    work = _Work(recipe, model, speed)
    return _without(skipped, work.searched(), work.disk_bytes(skipped))


def _without(
    skipped: Collection[str], stages: Iterable[StageEstimate], disk_bytes: float
) -> Estimate:
    return Estimate(tuple(one for one in stages if one.name not in skipped), disk_bytes)


@dataclass(frozen=True)
class _Work:
    """A recipe on a model on a machine."""

    recipe: Recipe
    model: Architecture
    speed: Speed

    def stages(self) -> Iterator[StageEstimate]:
        yield self._conversion()
        if self.recipe.compress.needs_calibration:
            yield self._recording()
        for component in COMPONENTS:
            if self.recipe.compress.collects(component):
                yield self._collection(component)
            yield from self._compressions(component)
        yield from self._evaluation()

    def searched(self) -> Iterator[StageEstimate]:
        search = self.recipe.search
        yield self._conversion()
        yield self._recording()
        yield self._collection("unet")
        for variant in search.variants.values():
            yield self._compression("unet", variant)
        exact, quick = self._step_seconds("f32"), self._quantized_step_seconds()
        calls = (_GROUPS[search.grouping] + 2) * search.timesteps
        pictures = (2 * search.confirmed + 2) * search.trajectories
        decoded = _CONTENT_SHARE * _GROUPS[search.grouping] + pictures
        seconds = (calls + pictures * search.trajectory_steps) * (exact + quick)
        seconds += decoded * self._seconds(self.model.vae_decoder_macs, "f32") + 2 * _LOAD_SECONDS
        peak, mapped = self._pipeline(4, _DECODING_BYTES_PIXEL)
        peak += 4 * self._parameters("unet")  # every layer is there twice
        for name in search.variants:
            yield StageEstimate(
                "sensitivity", name, seconds, _WAITING_BYTES + _TORCH_BYTES + peak, mapped
            )
        drawn = search.candidates + 1
        timed = 2 * (2 + len(search.variants) + drawn)
        timing = timed * (_COMPILE_SECONDS + 13 * exact)
        yield StageEstimate("cost", f"{timed} models", timing, *self._drawing_memory())
        per_picture = self._baseline_seconds() + drawn * self._candidate_seconds(
            self.recipe.runtime
        )
        detail = f"{1 + drawn} x {search.prompts} pictures"
        drawing = _LOAD_SECONDS * drawn + search.prompts * per_picture
        yield StageEstimate("draw", detail, drawing, *self._drawing_memory())

    def swept(self, candidates: Sequence[Runtime], turns: int) -> Iterator[StageEstimate]:
        yield self._conversion()
        pictures, memory = self.recipe.evaluate.prompts, self._drawing_memory()
        seconds = [self._candidate_seconds(one) for one in candidates]
        drawing = 25 + pictures * (self._baseline_seconds() + sum(seconds))
        detail = f"{1 + len(candidates)} x {pictures} pictures"
        yield StageEstimate("draw", detail, drawing, *memory)
        timing = turns * (25 * len(candidates) + 2 * sum(seconds))
        detail = f"{len(candidates)} x {turns} processes"
        yield StageEstimate("measure", detail, timing, *memory)

    def _conversion(self) -> StageEstimate:
        stored = sum(part.stored_bytes for part in self.model.parts)
        largest = max(self._ir_bytes(component) for component in COMPONENTS)
        return StageEstimate(
            "convert",
            "checkpoint to OpenVINO IR",
            _CONVERT_SECONDS + _CONVERT_SECONDS_BYTE * stored,
            _WAITING_BYTES + _TORCH_BYTES + _TRACING_BYTES + largest,
            largest if self.recipe.convert.weights == "stored" else 0.0,
        )

    def _recording(self) -> StageEstimate:
        calls = self.recipe.calibrate.prompts * self.recipe.sampling.unet_calls
        seconds = _LOAD_SECONDS + calls * self._step_seconds("f32")
        peak, mapped = self._pipeline(4, 0)
        return StageEstimate(
            "calibrate", f"{calls} UNet calls", seconds, _WAITING_BYTES + peak, mapped
        )

    def _collection(self, component: str) -> StageEstimate:
        """Statistics of one component; where "auto" compares, it is expected to choose bf16."""
        options, model = self.recipe.calibrate, self.model
        items, macs, working = {
            "unet": (options.samples, model.unet_macs, _DENOISING_BYTES_PIXEL),
            "text_encoder": (2 * options.prompts, model.text_encoder_macs, 0),
            "vae_decoder": (options.prompts, model.vae_decoder_macs, _DECODING_BYTES_PIXEL),
        }[component]
        precision = options.statistics
        if precision == "auto" and not (self.speed.narrow and worth_comparing(items)):
            precision = "f32"
        exact = {"f32": items, "bf16": 0, "auto": PROBES}[precision]
        rounded = 0 if precision == "f32" else items  # what auto compares is run in both
        weights = (4 if exact else 2) * self._parameters(component)
        seconds = _LOAD_SECONDS + (_COMPILE_SECONDS if precision == "auto" else 0)
        for count, kind in ((exact, "f32"), (rounded, "native")):
            seconds += _COLLECTING * count * self._seconds(macs, kind)
        mapped = self._resident_mapping(component)
        return StageEstimate(
            "ranges",
            f"{component}: {items} inputs",
            seconds,
            _WAITING_BYTES + _RUNTIME_BYTES + model.pixels * working + weights + mapped,
            mapped,
        )

    def _compressions(self, component: str) -> Iterator[StageEstimate]:
        options = self.recipe.compress.method_of(component)
        if not isinstance(options, Mixed):
            yield self._compression(component, options)
            return
        for one in options.variants.values():
            yield self._compression(component, one)
        # Joining variants takes as long as writing a model, and keeps their files mapped.
        mapped = (1 + len(options.variants)) * self._resident_mapping(component)
        seconds = 5 + _COMPRESS_SECONDS_PARAMETER["fp16"] * self._parameters(component)
        peak = _WAITING_BYTES + _RUNTIME_BYTES + mapped
        yield StageEstimate("compress", f"{component}: mixed", seconds, peak, mapped)

    def _compression(self, component: str, options: Plain) -> StageEstimate:
        parameters, mapped = self._parameters(component), self._resident_mapping(component)
        detail = f"{component}: {options.method}"
        if not options.is_calibrated:
            held = _HELD_BYTES["fp16" if options.method == "fp16" else "weights"]
        elif options.needs_statistics:
            held = _HELD_BYTES["smoothed"]
        else:
            held = _HELD_BYTES["accurate"]
            detail += ", at least"  # NNCF runs the model itself, as often as it finds useful
        seconds = 5 + _COMPRESS_SECONDS_PARAMETER[options.method] * parameters
        return StageEstimate(
            "compress",
            detail,
            seconds,
            _WAITING_BYTES + _NNCF_BYTES + mapped + held * parameters,
            mapped,
        )

    def _evaluation(self) -> Iterator[StageEstimate]:
        evaluate, calls = self.recipe.evaluate, self.recipe.sampling.unet_calls
        baseline = self._baseline_seconds()
        candidate = self._candidate_seconds(self.recipe.runtime)
        quick = calls * self._quantized_step_seconds()
        memory = self._drawing_memory()
        pictures, prompts, rounds = evaluate.prompts, evaluate.sqnr_prompts, evaluate.timed_images
        few = pictures
        if evaluate.yardstick_prompts is not None:
            few = min(few, evaluate.yardstick_prompts)
        # Where the device picks f32 by itself, nothing is measured in another precision.
        rounded = calls * self._step_seconds("native") if self.speed.narrow else 0.0
        # The yardsticks: in bf16, with fewer steps, with other seeds.
        yardsticks = few * (rounded + 2 * baseline)
        drawing = 25 + pictures * (baseline + candidate) + yardsticks
        detail = f"2 x {pictures} pictures, {few} for each yardstick"
        yield StageEstimate("draw", detail, drawing, *memory)
        compared = calls * self._step_seconds("f32") + 2 * (quick + rounded)
        compared += 2 * self._seconds(self.model.vae_decoder_macs, "f32")
        yield StageEstimate("sqnr", f"{prompts} prompts", 35 + prompts * compared, *memory)
        yield self._layers()
        seconds = rounds * (25 + 2 * (baseline + candidate))
        yield StageEstimate("measure", f"2 x {rounds} processes", seconds, *memory)

    def _drawing_memory(self) -> tuple[float, float]:
        """Peak and mapped bytes, those of the process that waits included."""
        peak, mapped = self._pipeline(4, _DECODING_BYTES_PIXEL)
        return _WAITING_BYTES + peak, mapped

    def _baseline_seconds(self) -> float:
        """A picture's, without loading; so are the others."""
        denoising = self.recipe.sampling.unet_calls * self._step_seconds("f32")
        return denoising + self._seconds(self.model.vae_decoder_macs, "f32")

    def _candidate_seconds(self, runtime: Runtime) -> float:
        decoding = self._seconds(self.model.vae_decoder_macs, "native")
        decoding *= _TINY_DECODER if runtime.decoder == "tiny" else 1.0
        return self._candidate_calls(runtime) * self._quantized_step_seconds() + decoding

    def _quantized_step_seconds(self) -> float:
        options = self.recipe.compress.unet
        if isinstance(options, Mixed) and options.otherwise in options.variants:
            options = options.variants[options.otherwise]
        method = options.method
        quantized = _QUANTIZED["narrow" if self.speed.narrow else "f32"].get(method, 1.0)
        return self._step_seconds("native") * quantized

    def _candidate_calls(self, runtime: Runtime) -> float:
        """A candidate's picture in calls of the whole network with all branches of guidance."""
        sampling = self.recipe.sampling
        changed = runtime.model_dump(include={"scheduler", "steps"}, exclude_none=True)
        calls = sampling.model_copy(update=changed).unet_calls
        whole = math.ceil(calls / runtime.cache_interval)
        # What thinned attention saves is within what the estimate leaves open.
        work = whole + (calls - whole) * min(1.0, _OUTER_LAYERS * runtime.cache_depth)
        unguided = 1 - (runtime.guidance_end - runtime.guidance_begin)
        return work * (1 - unguided / 2 if sampling.branches == 2 else 1)

    def _layers(self) -> StageEstimate:
        """Both UNets, one at a time, compiled anew for each part of their layers."""
        runs = 2 * math.ceil(self.model.pixels * _LAYERS_BYTES_PIXEL / WATCHED_BYTES)
        seconds = _LOAD_SECONDS / 2 + runs * (_COMPILE_SECONDS * 1.5 + self._step_seconds("f32"))
        mapped = self._resident_mapping("unet")
        working = self.model.pixels * _DENOISING_BYTES_PIXEL + _LAYERS_ROOM * WATCHED_BYTES
        peak = _WAITING_BYTES + _RUNTIME_BYTES + working + 4 * self._parameters("unet") + mapped
        return StageEstimate("layers", "of the UNet", seconds, peak, mapped)

    def disk_bytes(self, skipped: Collection[str]) -> float:
        """The store and the result: IR, statistics, and the compressed parts twice."""
        recipe, model = self.recipe, self.model
        compressed = total = 0.0
        for component in COMPONENTS:
            options = recipe.compress.method_of(component)
            size = (2.0 if options.method == "fp16" else 1.0) * self._parameters(component)
            compressed += size
            if isinstance(options, Mixed) and "compress" not in skipped:
                total += size * len(options.variants)
        total += compressed * (("compress" not in skipped) + ("bundle" not in skipped))
        if "convert" not in skipped:
            total += sum(self._ir_bytes(component) for component in COMPONENTS)
        if recipe.compress.collects("unet") and "ranges" not in skipped:
            total += recipe.calibrate.samples * _STATISTIC_BYTES * model.unet_channels
        return total

    def _step_seconds(self, precision: str) -> float:
        return self.recipe.sampling.branches * self._seconds(self.model.unet_macs, precision)

    def _seconds(self, macs: float, precision: str) -> float:
        if precision == "f32" or not self.speed.narrow:
            return macs / (self.speed.f32 * _EFFICIENCY["f32"])
        return macs / (self.speed.native * _EFFICIENCY["narrow"])

    def _parameters(self, component: str) -> float:
        model = self.model
        if component in _PARTS_OF_VAE:
            return model.vae.parameters * _PARTS_OF_VAE[component]
        return model.unet.parameters if component == "unet" else model.text_encoder.parameters

    def _ir_bytes(self, component: str) -> float:
        """The size of a component's .bin."""
        model = self.model
        parts = {"text_encoder": model.text_encoder, "unet": model.unet}
        part = parts.get(component, model.vae)
        as_fp32 = self.recipe.convert.weights == "fp32"
        return (4.0 if as_fp32 else part.stored_bytes / part.parameters) * self._parameters(
            component
        )

    def _resident_mapping(self, component: str) -> float:
        """What counts of a mapped file that `runtime.mapping` gives back again and again.

        On Linux nothing: what of it is resident for a moment is in the factors.
        """
        return 0.0 if GIVES_BACK else self._ir_bytes(component)

    def _pipeline(self, bytes_per_weight: int, bytes_per_pixel: float) -> tuple[float, float]:
        """Peak and mapped bytes of the runtime with all parts compiled that draw."""
        drawing = ("text_encoder", "unet", "vae_decoder")
        weights = sum(bytes_per_weight * self._parameters(one) for one in drawing)
        mapped = sum(self._resident_mapping(one) for one in drawing)
        working = self.model.pixels * (_DENOISING_BYTES_PIXEL + bytes_per_pixel)
        return _RUNTIME_BYTES + working + weights + mapped, mapped


def require_room(expected: Estimate, folder: Path) -> None:
    """Raises PreflightError when memory or disk do not suffice for a run writing to `folder`."""
    faults = []
    memory = available_memory_bytes()
    if expected.needed_bytes > memory:
        worst = max(expected.stages, key=lambda stage: stage.needed_bytes)
        faults.append(
            f"memory: {worst.name} ({worst.detail}) needs about "
            f"{expected.needed_bytes / 1e9:.1f} GB beside mapped files, {memory / 1e9:.1f} GB are "
            "free: close other programs, or use a machine with more"
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


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder


def describe(expected: Estimate) -> Iterator[str]:
    """Yields the lines of a table for reading."""
    yield f"{'stage':<10} {'what':<28} {'time':>9} {'peak memory':>12} {'of it mapped':>13}"
    for stage in expected.stages:
        yield (
            f"{stage.name:<10} {stage.detail:<28} {_duration(stage.seconds):>9} "
            f"{stage.peak_rss_bytes / 1e9:>9.1f} GB {stage.mapped_bytes / 1e9:>10.1f} GB"
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
