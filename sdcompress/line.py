"""The production line of one run: each method makes sure one stage is finished and returns it.

A stage's key is the hash of its part of the recipe, its upstream's key and the tools' versions.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from sdcompress.activations import (
    Activation,
    MissingStatisticsError,
    collect,
    require_executable,
)
from sdcompress.calibrate import ModelInputs, calibrate
from sdcompress.compress import CompressedIR, Recorded, compress, mix
from sdcompress.convert import convert
from sdcompress.identity import (
    BASELINE,
    COMPRESSED,
    keep_hashes,
    kept_hashes,
    key_of_files,
    key_of_tiny_decoder,
)
from sdcompress.ir import IR_NAME, SHARED, TINY_DECODER
from sdcompress.isolation import run_isolated
from sdcompress.methods import COMPONENTS, Method, Mixed, Plain
from sdcompress.processor import executes_bf16, has_vnni
from sdcompress.progress import Advance, Progress
from sdcompress.prompts import Prompt, load_prompts
from sdcompress.recipe import DEMO, Calibrate, Recipe
from sdcompress.runtime import Pipeline, Settings, require_device, require_scheduler
from sdcompress.source import Source, locate
from sdcompress.store import Store, key_of, read_record, write_record
from sdcompress.tiny_decoder import TinyDecoder, convert_tiny_decoder, locate_tiny_decoder

# Starting a process takes longer than compressing a model of less than this, and it fits anywhere.
SMALL_MODEL_BYTES = 200_000_000
T = TypeVar("T")
_CONVERT_TOOLS = (
    "diffusers",
    "openvino",
    "openvino-tokenizers",
    "optimum-intel",
    "peft",
    "torch",
    "transformers",
)


@dataclass(frozen=True)
class Material:
    """What a run builds from, found before any long work begins."""

    source: Source
    calibration_prompts: tuple[Prompt, ...]
    tiny_decoder: TinyDecoder | None = None


def find_material(recipe: Recipe, progress: Progress, *, makes: bool = True) -> Material:
    """Locates device, model, scheduler and, where a model is made, what else that takes.

    Raises a SdcompressError for whatever cannot be used.
    """
    chosen = recipe.calibrate
    if makes and any(recipe.compress.collects(component) for component in COMPONENTS):
        require_executable(chosen.statistics)
    prompts: tuple[Prompt, ...] = ()
    if makes and recipe.compress.needs_calibration:
        prompts = load_prompts(chosen.prompt_set, chosen.prompts, chosen.seed)
    require_device(recipe.device, execution_precision=recipe.execution_precision)
    source = locate(
        recipe.model,
        recipe.revision,
        recipe.variant,
        progress,
        config=recipe.config,
        loras=[(one.file, one.scale) for one in recipe.loras],
    )
    for scheduler in recipe.schedulers:
        require_scheduler(source.folder, scheduler)
    return Material(
        source, prompts, _find_tiny_decoder(recipe, source, progress) if makes else None
    )


def _find_tiny_decoder(recipe: Recipe, source: Source, progress: Progress) -> TinyDecoder | None:
    """The demo's recipes are used with other models as well, which its decoder does not fit."""
    name = recipe.convert.tiny_decoder
    if name == DEMO and source.id != DEMO and recipe.runtime.decoder != "tiny":
        progress.notice(f"the demo's tiny decoder is left out: it does not fit {source.id}")
        return None
    return locate_tiny_decoder(name, source) if name else None


def _record(
    baseline: Path,
    device: str,
    prompts: tuple[Prompt, ...],
    options: Calibrate,
    settings: Settings,
    folder: Path,
    advance: Advance,
) -> None:
    """Records calibration inputs with a pipeline of its own, which is gone afterwards."""
    pipeline = Pipeline.load(baseline, device=device, execution_precision="f32", verify="never")
    calibrate(pipeline, prompts, options, settings, folder, advance)


def run_apart(
    weight_bytes: int, function: Callable[..., T], *arguments: Any, on_progress: Advance
) -> T:
    """Calls ``function(*arguments, on_progress)``, for a large model in a process of its own."""
    if weight_bytes < SMALL_MODEL_BYTES:
        return function(*arguments, on_progress)
    return run_isolated(function, *arguments, on_progress=on_progress)


@dataclass(frozen=True)
class Line:
    """One recipe on one store."""

    recipe: Recipe
    material: Material
    store: Store
    progress: Progress

    @property
    def source(self) -> Source:
        return self.material.source

    @cached_property
    def settings(self) -> Settings:
        return Settings(**self.recipe.baseline_settings)

    @cached_property
    def converted_key(self) -> str:
        return key_of(
            model=self.source.revision,
            variant=self.source.variant,
            loras=[(one.sha256, one.scale) for one in self.source.loras],
            options=self.recipe.convert.model_dump(exclude={"tiny_decoder"}),
            tools={name: version(name) for name in _CONVERT_TOOLS},
        )

    @cached_property
    def converted(self) -> Path:
        """The uncompressed IR folder: the baseline."""

        def build(folder: Path, advance: Advance) -> None:
            self.run(convert, self.source, self.recipe.convert, folder, on_progress=advance)
            keep_hashes(folder)

        return self.store.stage(
            self.progress, "convert", self.converted_key, f"{self.source.id} to OpenVINO IR", build
        )

    @cached_property
    def _tiny_decoder_key(self) -> str:
        return key_of(
            revision=self.material.tiny_decoder and self.material.tiny_decoder.revision,
            weights=self.recipe.convert.weights,
            tools={name: version(name) for name in ("diffusers", "openvino", "torch")},
        )

    @cached_property
    def tiny_decoder(self) -> Path | None:
        """The folder with the tiny decoder's IR, if the recipe names one."""
        tiny = self.material.tiny_decoder
        if tiny is None:
            return None

        def build(folder: Path, advance: Advance) -> None:
            stored = self.recipe.convert.weights == "stored"
            self.run(convert_tiny_decoder, tiny, folder, stored, on_progress=advance)
            keep_hashes(folder)

        key, detail = self._tiny_decoder_key, f"tiny decoder {tiny.id} to OpenVINO IR"
        return self.store.stage(self.progress, "tiny", key, detail, build) / TINY_DECODER

    def run(self, function: Callable[..., T], *arguments: Any, on_progress: Advance) -> T:
        """Calls ``function(*arguments, on_progress)``, as `run_apart` does for this model."""
        return run_apart(self.source.weight_bytes, function, *arguments, on_progress=on_progress)

    @cached_property
    def calibrated_key(self) -> str:
        return key_of(
            upstream=self.converted_key,
            options=self.recipe.calibrate.model_dump(exclude={"statistics"}),
            sampling=asdict(self.settings),
            prompts=[asdict(prompt) for prompt in self.material.calibration_prompts],
            device=self.recipe.device,
            tools={name: version(name) for name in ("openvino", "datasets")},
        )

    def model_record(self) -> dict[str, Any]:
        """The model's identity for report and manifest."""
        source, tiny = self.source, self.material.tiny_decoder
        return {
            "id": source.id,
            "revision": source.revision,
            "variant": source.variant,
            "notice": source.notice,
            "loras": source.lora_records(),
            "tiny_decoder": tiny and tiny.record(),
        }

    @cached_property
    def calibrated(self) -> Path:
        """The recorded inputs."""
        baseline = self.converted

        def build(folder: Path, advance: Advance) -> None:
            prompts, options = self.material.calibration_prompts, self.recipe.calibrate
            arguments = (baseline, self.recipe.device, prompts, options, self.settings, folder)
            self.run(_record, *arguments, on_progress=advance)
            provenance = {"model": self.model_record(), "recipe": self.recipe.as_dict()}
            (folder / "provenance.json").write_text(json.dumps(provenance, indent=1), "utf-8")

        options = self.recipe.calibrate
        detail = f"{options.samples} UNet inputs from {options.prompts} prompts"
        return self.store.stage(
            self.progress, "calibrate", self.calibrated_key, detail, build, resumable=True
        )

    def finished(self) -> set[str]:
        """The names of those stages before the evaluation that are done or not asked for."""
        methods = self.recipe.compress
        quantized = [one for one in COMPONENTS if methods.collects(one)]
        keys = {
            "convert": [self.converted_key],
            "calibrate": [self.calibrated_key] if methods.needs_calibration else [],
            "ranges": [self._statistics_key(component, None) for component in quantized],
            "compress": [self.compressed_key(component) for component in COMPONENTS],
        }
        return {
            name
            for name, needed in keys.items()
            if all(self.store.has(name, key) for key in needed)
        }

    def _statistics_key(self, component: str, activations: tuple[Activation, ...] | None) -> str:
        return key_of(
            upstream=self.calibrated_key,
            component=component,
            batch=self._batch(component),
            precision=self.recipe.calibrate.statistics,
            executes_bf16=executes_bf16(),
            activations=activations and [asdict(one) for one in activations],
            tools={"openvino": version("openvino")},
        )

    def _statistics(self, component: str, activations: tuple[Activation, ...] | None) -> Path:
        """Ranges and means of a component's activations on its recorded inputs.

        Without `activations`, those that any of the methods asks for: they do not depend on the
        method's options, so another preset or ignored scope finds them here.
        """
        inputs = self._inputs(component)
        precision = self.recipe.calibrate.statistics

        def build(folder: Path, advance: Advance) -> str:
            xml = self.converted / component / IR_NAME
            arguments = (xml, activations, inputs, folder, precision)
            return f"in {self.run(collect, *arguments, on_progress=advance)}"

        key = self._statistics_key(component, activations)
        detail = f"{component}: activations of {len(inputs)} inputs"
        return self.store.stage(self.progress, "ranges", key, detail, build, resumable=True)

    def compressed_key(self, component: str) -> str:
        return self.key_of_method(component, self.recipe.compress.method_of(component))

    def key_of_method(self, component: str, options: Method) -> str:
        if isinstance(options, Mixed):
            variants = options.variants.items()
            return key_of(
                upstream=self.converted_key,
                variants={name: self.key_of_method(component, one) for name, one in variants},
                layers=list(options.layers.items()),
                otherwise=options.otherwise,
            )
        upstream = self.calibrated_key if options.is_calibrated else self.converted_key
        if options.needs_statistics:
            upstream = self._statistics_key(component, None)
        return key_of(
            upstream=upstream,
            component=component,
            options=options.model_dump(),
            has_vnni=has_vnni() if options.is_calibrated else None,
            tools={name: version(name) for name in ("nncf", "openvino")},
        )

    def keys(self) -> dict[str, str]:
        """The keys of baseline and candidate by their files; of what is made, without making it."""
        converted = self.store.find("convert", self.converted_key)
        if converted is None:
            return {}
        hashes = kept_hashes(converted)
        keys = {BASELINE: key_of_files(hashes)}
        tiny = self.store.find("tiny", self._tiny_decoder_key)
        if tiny:
            keys |= key_of_tiny_decoder(kept_hashes(tiny))
        parts = [self.store.find("compress", self.compressed_key(one)) for one in COMPONENTS]
        candidate = {name: one for name, one in hashes.items() if name.split("/")[0] in SHARED}
        for folder in parts:
            if folder is None:
                return keys
            candidate |= kept_hashes(folder)
        return keys | {COMPRESSED: key_of_files(candidate)}

    def compressed(self) -> dict[str, CompressedIR]:
        """The compressed IR of each component."""
        methods = self.recipe.compress
        return {one: self.compressed_by(one, methods.method_of(one)) for one in COMPONENTS}

    def _inputs(self, component: str) -> ModelInputs:
        return ModelInputs(self.calibrated, component, self._batch(component))

    def _batch(self, component: str) -> int:
        return (self.recipe.convert.batch if component == "unet" else None) or 1

    def _recorded(
        self, component: str, options: Plain, extras: list[tuple[Activation, ...]]
    ) -> Recorded | None:
        """What calibration left for a component, with statistics beyond the usual ones."""
        if not options.is_calibrated:
            return None
        wanted = [None, *extras] if options.needs_statistics else []
        statistics = tuple(self._statistics(component, one) for one in wanted)
        return Recorded(self._inputs(component), statistics)

    def compressed_by(self, component: str, options: Method) -> CompressedIR:
        """A component's IR by some method, whether the recipe names that or not."""
        if isinstance(options, Mixed):
            return self._mixed(component, options)
        extras: list[tuple[Activation, ...]] = []
        while True:
            try:
                folder = self._compress_stage(component, options, extras)
            except MissingStatisticsError as missing:
                if missing.activations in extras:
                    raise  # collecting them again would end here again
                extras.append(missing.activations)
            else:
                return _compressed_in(folder)

    def _compress_stage(
        self, component: str, options: Plain, extras: list[tuple[Activation, ...]]
    ) -> Path:
        baseline = self.converted / component
        key, detail = self.key_of_method(component, options), f"{component}: {options.method}"
        recorded = self._recorded(component, options, extras)

        def build(folder: Path, advance: Advance) -> None:
            arguments = (baseline, options, folder / component, recorded, has_vnni())
            record = self.run(compress, *arguments, on_progress=advance)
            _keep_compressed(folder, record)

        return self.store.stage(self.progress, "compress", key, detail, build)

    def _mixed(self, component: str, options: Mixed) -> CompressedIR:
        made = {name: self.compressed_by(component, one) for name, one in options.variants.items()}
        variants = {name: ir.folder for name, ir in made.items()}
        baseline = self.converted / component

        def build(folder: Path, advance: Advance) -> None:
            arguments = (baseline, variants, options, folder / component)
            _keep_compressed(folder, self.run(mix, *arguments, on_progress=advance))

        key, detail = self.key_of_method(component, options), f"{component}: {options.method}"
        return _compressed_in(self.store.stage(self.progress, "compress", key, detail, build))


def _keep_compressed(folder: Path, record: CompressedIR) -> None:
    relative = replace(record, folder=record.folder.relative_to(folder))
    write_record(folder / "record.json", CompressedIR, relative)
    keep_hashes(folder)


def _compressed_in(folder: Path) -> CompressedIR:
    record = read_record(folder / "record.json", CompressedIR)
    return replace(record, folder=folder / record.folder)
