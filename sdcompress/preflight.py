"""Estimates, before long work begins, how much memory, disk and time a run will take.

Memory follows from the sizes of the model's parts and from what each stage holds of them. Time is
the model's multiply-accumulates over the speed of this machine, which a convolution of the model's
kind is run for. The factors below were fitted to the measurements of a full-size Stable Diffusion
2.1 in docs/benchmarks.md, which also compares a run with its estimate.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from sdcompress.activations import PROBES, worth_comparing
from sdcompress.architecture import Architecture
from sdcompress.disk import BESIDE_UNET, DiskUse
from sdcompress.evaluate.layer_errors import WATCHED_BYTES
from sdcompress.methods import COMPONENTS, Method, Mixed, Plain, made_for, most_of
from sdcompress.outlook import Estimate, StageEstimate
from sdcompress.recipe import Recipe, Runtime
from sdcompress.runtime.mapping import GIVES_BACK
from sdcompress.search.calls import look_block
from sdcompress.speed import Speed

STAGES = (
    "convert", "calibrate", "ranges", "compress", "draw", "sqnr", "layers", "measure", "bundle",
)  # fmt: skip
SEARCH_STAGES = ("sensitivity", "cost")
# Resident bytes of a process before it has read a model, and of the one that waits for it.
_RUNTIME_BYTES = 0.15e9
_WAITING_BYTES = 0.25e9
_NNCF_BYTES = 0.28e9
_TORCH_BYTES = 0.60e9
_TRACING_BYTES = 0.46e9
_CLIP_BYTES = 1.71e9  # the usual scorer, ViT-L/14 in float32
# What a UNet's and a VAE decoder's activations take, in float32, a pixel of the picture.
_DENOISING_BYTES_PIXEL = 1150
_DECODING_BYTES_PIXEL = 3200
# What a UNet's layers return, in float32, a pixel; so much of it at once, which takes so many
# executions, and memory beside the outputs for what they are made of.
_LAYERS_BYTES_PIXEL = 7220
_LAYERS_ROOM = 2.5
# What compression holds in bytes a parameter.
_HELD_BYTES = {"fp16": 0.0, "smoothed": 3.7, "weights": 1.3, "accurate": 17.0}
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


def estimate(
    recipe: Recipe, model: Architecture, speed: Speed, skipped: Collection[str] = ()
) -> Estimate:
    """Puts a run's stages together from what the recipe asks for.

    `skipped` names the STAGES that are finished or not asked for.
    """
    work = _Work(recipe, model, speed)
    return _without(skipped, work.stages(), work.disk.run_bytes(skipped))


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
    return _without(skipped, work.swept(candidates, turns), work.disk.run_bytes(skipped))


def estimate_search(
    recipe: Recipe, model: Architecture, speed: Speed, skipped: Collection[str] = ()
) -> Estimate:
    """The same for a search by a user's recipe, its own method for the UNet included.

    The evaluation of the candidate that it tries first is counted; each that does not pass adds
    another. `skipped` may name SEARCH_STAGES as well.
    """
    work = _Work(recipe, model, speed)
    return _without(skipped, work.searched(), work.disk.search_bytes(skipped))


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

    @property
    def disk(self) -> DiskUse:
        return DiskUse(self.recipe, self.model)

    def stages(self) -> Iterator[StageEstimate]:
        yield self._conversion()
        if self.recipe.compress.needs_calibration:
            yield self._recording()
        yield from self._compressions(COMPONENTS)
        yield from self._evaluation()

    def searched(self) -> Iterator[StageEstimate]:
        search = self.recipe.search
        methods = made_for(*search.variants.values(), self.recipe.compress.unet)
        yield self._conversion()
        yield self._recording()
        yield from self._made("unet", methods)
        yield self._mixing("unet", len(search.variants), search.candidates)
        yield from self._compressions(BESIDE_UNET)
        for name, variant in search.variants.items():
            yield self._sensitivity(name, variant)
        yield self._costs()
        yield self._trial_pictures()
        if self.recipe.budgets.unet_sqnr_min_db is not None:
            yield self._sqnr(search.trajectories, 1 + search.candidates)
        yield from self._evaluation()

    def _sensitivity(self, name: str, variant: Plain) -> StageEstimate:
        """Calls with one group switched each, then short trajectories with the worst of them."""
        search = self.recipe.search
        short = self.recipe.sampling.model_copy(update={"steps": search.trajectory_steps})
        # Both sides of every switch are computed, in float32 what is not in 8 bits.
        call = self._step_seconds("f32") * (1 + _QUANTIZED["f32"].get(variant.method, 1.0))
        groups = _GROUPS[search.grouping]
        pictures = (2 * search.confirmed + 2) * search.trajectories
        calls = (groups + 2) * search.timesteps + pictures * short.unet_calls
        looks = (_CONTENT_SHARE * groups + 2) * search.timesteps
        if self.recipe.convert.height is None:
            looks /= look_block(math.isqrt(self.model.pixels) // 8) ** 2
        decoded = looks + pictures
        seconds = 2 * _LOAD_SECONDS + calls * call
        seconds += decoded * self._seconds(self.model.vae_decoder_macs, "f32")
        peak, mapped = self._pipeline(4, _DECODING_BYTES_PIXEL)
        peak += 4 * self.model.parameters_of("unet")  # every layer is there twice
        peak += _WAITING_BYTES + _TORCH_BYTES + _CLIP_BYTES
        return StageEstimate("sensitivity", name, seconds, peak, mapped)

    def _costs(self) -> StageEstimate:
        """Every UNet is compiled twice: the variants, the candidates, and before both 16 bits."""
        search = self.recipe.search
        timed = 2 * (1 + len(search.variants) + 2 + search.candidates)
        seconds = timed * (_COMPILE_SECONDS + 12 * self._step_seconds(self._own))
        return StageEstimate("cost", f"{timed} models", seconds, *self._drawing_memory())

    def _trial_pictures(self) -> StageEstimate:
        """What candidates are ranked by: the baseline's, the own method's and theirs."""
        search, drawn = self.recipe.search, 1 + self.recipe.search.candidates
        seconds = self._baseline_seconds() + drawn * self._candidate_seconds(self.recipe.runtime)
        seconds = (1 + drawn) * _LOAD_SECONDS + search.prompts * seconds
        detail = f"{1 + drawn} x {search.prompts} pictures"
        return StageEstimate("draw", detail, seconds, *self._drawing_memory())

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
        largest = max(self.disk.converted_bytes(component) for component in COMPONENTS)
        return StageEstimate(
            "convert",
            "checkpoint to OpenVINO IR",
            _CONVERT_SECONDS + _CONVERT_SECONDS_BYTE * stored,
            _WAITING_BYTES + _TORCH_BYTES + _TRACING_BYTES + largest,
            largest if self.recipe.convert.weights == "stored" else 0.0,
        )

    def _recording(self) -> StageEstimate:
        prompts, calls = self.recipe.calibrate.prompts, self.recipe.sampling.unet_calls
        work = prompts * _whole_calls(calls, self.recipe.calibrate.cache_interval)
        seconds = _LOAD_SECONDS + work * self._step_seconds("f32")
        peak, mapped = self._pipeline(4, 0)
        return StageEstimate(
            "calibrate", f"{prompts * calls} UNet calls", seconds, _WAITING_BYTES + peak, mapped
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
        weights = (4 if exact else 2) * self.model.parameters_of(component)
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

    def _compressions(self, components: Iterable[str]) -> Iterator[StageEstimate]:
        """Components as the recipe says."""
        for component in components:
            yield from self._made(component, made_for(self.recipe.compress.method_of(component)))

    def _made(self, component: str, methods: Sequence[Method]) -> Iterator[StageEstimate]:
        """A component by some methods, with statistics where any of them needs these."""
        if any(one.needs_statistics for one in methods):
            yield self._collection(component)
        for one in methods:
            if isinstance(one, Mixed):
                yield self._mixing(component, len(one.variants))
            else:
                yield self._compression(component, one)

    def _mixing(self, component: str, variants: int, times: int = 1) -> StageEstimate:
        """Joining variants takes as long as writing a model, and keeps their files mapped."""
        mapped = (1 + variants) * self._resident_mapping(component)
        seconds = 5 + _COMPRESS_SECONDS_PARAMETER["fp16"] * self.model.parameters_of(component)
        detail = f"{component}: mixed" + (f", {times} times" if times > 1 else "")
        peak = _WAITING_BYTES + _RUNTIME_BYTES + mapped
        return StageEstimate("compress", detail, times * seconds, peak, mapped)

    def _compression(self, component: str, options: Plain) -> StageEstimate:
        parameters, mapped = self.model.parameters_of(component), self._resident_mapping(component)
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
        evaluate = self.recipe.evaluate
        baseline = self._baseline_seconds()
        candidate = self._candidate_seconds(self.recipe.runtime)
        memory = self._drawing_memory()
        pictures, rounds = evaluate.prompts, evaluate.timed_images
        few = pictures
        if evaluate.yardstick_prompts is not None:
            few = min(few, evaluate.yardstick_prompts)
        rounded = self._rounded_seconds()
        # The yardsticks: in bf16, with fewer steps, with other seeds.
        yardsticks = few * (rounded + 2 * baseline)
        drawing = 25 + pictures * (baseline + candidate) + yardsticks
        detail = f"2 x {pictures} pictures, {3 if rounded else 2} x {few} more"
        yield StageEstimate("draw", detail, drawing, *memory)
        yield self._sqnr(evaluate.sqnr_prompts)
        yield self._layers()
        seconds = rounds * (25 + 2 * (baseline + candidate))
        yield StageEstimate("measure", f"2 x {rounds} processes", seconds, *memory)

    def _rounded_seconds(self) -> float:
        """Denoising in the device's own precision; nothing is measured so where that is f32."""
        calls = self.recipe.sampling.unet_calls
        return calls * self._step_seconds("native") if self.speed.narrow else 0.0

    def _sqnr(self, prompts: int, candidates: int = 1) -> StageEstimate:
        """What the baseline was asked, asked of the others, and both pictures."""
        calls = self.recipe.sampling.unet_calls
        quick = calls * self._quantized_step_seconds()
        rounded = 0.0 if self._own == "f32" else self._rounded_seconds()
        compared = calls * self._step_seconds("f32") + 2 * (quick + rounded)
        compared += 2 * self._seconds(self.model.vae_decoder_macs, "f32")
        detail = "1 prompt" if prompts == 1 else f"{prompts} prompts"
        detail += f", {candidates} times" if candidates > 1 else ""
        seconds = candidates * (35 + prompts * compared)
        return StageEstimate("sqnr", detail, seconds, *self._drawing_memory())

    def _drawing_memory(self) -> tuple[float, float]:
        """Peak and mapped bytes, those of the process that waits included."""
        peak, mapped = self._pipeline(4, _DECODING_BYTES_PIXEL)
        return _WAITING_BYTES + peak, mapped

    def _baseline_seconds(self) -> float:
        """A picture's, without loading; so are the others."""
        denoising = self.recipe.sampling.unet_calls * self._step_seconds("f32")
        return denoising + self._seconds(self.model.vae_decoder_macs, "f32")

    def _candidate_seconds(self, runtime: Runtime) -> float:
        decoding = self._seconds(self.model.vae_decoder_macs, self._own)
        decoding *= _TINY_DECODER if runtime.decoder == "tiny" else 1.0
        return self._candidate_calls(runtime) * self._quantized_step_seconds() + decoding

    def _quantized_step_seconds(self) -> float:
        method = most_of(self.recipe.compress.unet).method
        narrow = self.speed.narrow and self._own != "f32"
        quantized = _QUANTIZED["narrow" if narrow else "f32"].get(method, 1.0)
        return self._step_seconds(self._own) * quantized

    @property
    def _own(self) -> str:
        """What the candidate is executed in."""
        return "f32" if self.recipe.execution_precision == "f32" else "native"

    def _candidate_calls(self, runtime: Runtime) -> float:
        """A candidate's picture in calls of the whole network with all branches of guidance."""
        sampling = self.recipe.sampling
        changed = runtime.model_dump(include={"scheduler", "steps"}, exclude_none=True)
        calls = sampling.model_copy(update=changed).unet_calls
        # What thinned attention saves is within what the estimate leaves open.
        work = _whole_calls(calls, runtime.cache_interval, runtime.cache_depth)
        unguided = 1 - (runtime.guidance_end - runtime.guidance_begin)
        return work * (1 - unguided / 2 if sampling.branches == 2 else 1)

    def _layers(self) -> StageEstimate:
        """Both UNets, one at a time, compiled anew for each part of their layers."""
        runs = 2 * math.ceil(self.model.pixels * _LAYERS_BYTES_PIXEL / WATCHED_BYTES)
        seconds = _LOAD_SECONDS / 2 + runs * (_COMPILE_SECONDS * 1.5 + self._step_seconds("f32"))
        mapped = self._resident_mapping("unet")
        working = self.model.pixels * _DENOISING_BYTES_PIXEL + _LAYERS_ROOM * WATCHED_BYTES
        peak = (
            _WAITING_BYTES
            + _RUNTIME_BYTES
            + working
            + 4 * self.model.parameters_of("unet")
            + mapped
        )
        return StageEstimate("layers", "of the UNet", seconds, peak, mapped)

    def _step_seconds(self, precision: str) -> float:
        return self.recipe.sampling.branches * self._seconds(self.model.unet_macs, precision)

    def _seconds(self, macs: float, precision: str) -> float:
        if precision == "f32" or not self.speed.narrow:
            return macs / (self.speed.f32 * _EFFICIENCY["f32"])
        return macs / (self.speed.native * _EFFICIENCY["narrow"])

    def _resident_mapping(self, component: str) -> float:
        """What counts of a mapped file that `runtime.mapping` gives back again and again.

        On Linux nothing: what of it is resident for a moment is in the factors.
        """
        return 0.0 if GIVES_BACK else self.disk.converted_bytes(component)

    def _pipeline(self, bytes_per_weight: int, bytes_per_pixel: float) -> tuple[float, float]:
        """Peak and mapped bytes of the runtime with all parts compiled that draw."""
        drawing = ("text_encoder", "unet", "vae_decoder")
        weights = sum(bytes_per_weight * self.model.parameters_of(one) for one in drawing)
        mapped = sum(self._resident_mapping(one) for one in drawing)
        working = self.model.pixels * (_DENOISING_BYTES_PIXEL + bytes_per_pixel)
        return _RUNTIME_BYTES + working + weights + mapped, mapped


def _whole_calls(calls: int, interval: int, depth: int = 1) -> float:
    """So many calls of which only some ask the whole network, in calls that do."""
    whole = math.ceil(calls / interval)
    return whole + (calls - whole) * min(1.0, _OUTER_LAYERS * depth)
