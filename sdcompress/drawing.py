"""Draws pictures from a bundle for the command line; needs the runtime's packages only."""

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import click
from PIL import Image

from sdcompress.runtime import (
    Economy,
    EmbeddingCache,
    InputError,
    Job,
    OnStep,
    Pipeline,
    Settings,
    Step,
    draw_in_phases,
    open_image,
    require_signature,
    save_png,
    stream,
)
from sdcompress.runtime.device import CACHE_BYTES
from sdcompress.runtime.economy import ALL_PARTS, choose_economy, expected_peaks, report
from sdcompress.runtime.prompting import require_readable
from sdcompress.runtime.residence import PhasePeaks
from sdcompress.runtime.settings import bundled_settings
from sdcompress.tuning import Tuning, recall

_MAX_SIDE = 4096


@dataclass(frozen=True)
class Begin:
    """What pictures begin with, other than noise."""

    image: Path | None = None
    mask: Path | None = None
    strength: float | None = None

    def job_fields(self) -> dict[str, Any]:
        """Raises InputError for an unreadable picture or a strength without one."""
        if self.image is None:
            if self.mask or self.strength is not None:
                raise InputError("--mask and --strength go with --image")
            return {}
        given: dict[str, Any] = {"image": open_image(self.image)}
        if self.mask:
            given["mask"] = open_image(self.mask)
        # A masked part is usually drawn from scratch, a whole picture is not.
        usual = 1.0 if self.mask else 0.8
        return given | {"strength": usual if self.strength is None else self.strength}


@dataclass(frozen=True)
class Engine:
    """Where and how the bundle is executed."""

    device: str = "CPU"
    precision: str | None = None
    threads: int | None = None
    cache_dir: Path | None = None
    cache_size: int = CACHE_BYTES
    mode: str | None = None
    streams: int | None = None
    batch: int | None = None
    static: bool | None = None
    keep_loaded: bool = False
    cache_prompts: bool = True
    max_memory: int | None = None
    verify: str = "once"
    public_key: Path | None = None

    def tuning(self, bundle: Path) -> Tuning:
        """The measured choice for a mode, with what was asked for on top."""
        base = Tuning()
        if self.mode:
            base = recall(bundle, self.device, self.precision, self.mode)
        given: dict[str, Any] = {
            "streams": self.streams,
            "batch": self.batch,
            "static": self.static,
            "threads": self.threads,
        }
        return replace(base, **{name: one for name, one in given.items() if one is not None})

    @property
    def verified(self) -> str:
        """When hashes are compared. A signature vouches for them, and they for the files."""
        return "always" if self.public_key else self.verify

    @property
    def keeps_prompts(self) -> bool:
        """Whether encoded prompts are kept: by hashes, which have to be those of the files."""
        return self.cache_prompts and self.verified != "never"

    def in_turn(self, tuning: Tuning, *, decodes_early: bool) -> bool:
        """Whether parts are given back before the next are loaded.

        `decodes_early` tells that the VAE's decoder works beside the UNet.
        """
        return not (self.keep_loaded or decodes_early or tuning.streams > 1)

    def open(self, bundle: Path, tuning: Tuning) -> Pipeline:
        """Checks the bundle and opens it."""
        if self.public_key is not None:
            require_signature(bundle, self.public_key)
        return Pipeline.load(
            bundle,
            device=self.device,
            execution_precision=self.precision,
            cache_dir=self.cache_dir,
            cache_bytes=self.cache_size,
            threads=tuning.threads,
            streams=tuning.streams,
            static=tuning.static,
            economy=Economy(tuning.branches),
            verify=self.verified,
        )


def draw(
    bundle: Path,
    prompts: Sequence[str],
    output: Path,
    *,
    seed: int,
    count: int,
    negative_prompt: str = "",
    size: str | None = None,
    preview: bool = False,
    memory_report: bool = False,
    fast: bool | None = None,
    begin: Begin,
    engine: Engine,
    **settings: Any,
) -> Iterator[Path]:
    """Draws `count` pictures of each prompt with consecutive seeds and yields each written file.

    Settings that are None fall back to those the bundle was evaluated with, where `fast` is False
    to those of its baseline. PNGs are encoded and written beside other work. Raises InputError for
    a malformed size or prompt, for an output folder that does not exist, for a memory limit that
    cannot be kept, and where `fast` is True and the bundle has no shortcuts.
    """
    _require_png(output)
    if size is not None:
        settings["width"], settings["height"] = _parse_size(size)
    start = begin.job_fields()
    jobs = [
        Job(prompt, negative_prompt, seed + index, **start)
        for prompt in prompts
        for index in range(count)
    ]
    tuning = engine.tuning(bundle)
    pipeline = engine.open(bundle, tuning)
    given = {name: value for name, value in settings.items() if value is not None}
    resolved = replace(_bundled(pipeline, fast=fast), **given)
    if resolved.partly_guided:  # what a mode remembers of branches is for guidance throughout
        pipeline.economy = Economy()
    _require_drawable(jobs, resolved, preview=preview)
    tuning = replace(tuning, batch=min(tuning.batch, len(jobs)))
    memory = _Memory(
        pipeline,
        resolved,
        tuning,
        in_turn=engine.in_turn(tuning, decodes_early=preview and not pipeline.has_tiny_decoder),
        known=begin.image is None and not resolved.long_prompts,
        previews=preview,
    )
    if engine.max_memory is not None:
        memory.limit(engine.max_memory)
    plan = pipeline.plan(resolved, jobs[0].strength if begin.image else 1.0)
    calls, drawn_with = len(plan), replace(resolved, scheduler=plan.config.scheduler)
    batches = -(-len(jobs) // tuning.batch)
    shown = output.with_suffix(".preview.png") if preview else None
    watch = _Watch(calls * batches, f"{len(jobs)} x {calls} calls", shown)
    watched = memory_report or engine.max_memory is not None
    with watch, memory.peaks.watching() if watched else nullcontext():
        cache = pipeline.prompt_cache() if engine.keeps_prompts else None
        drawn = memory.drawn(jobs, cache, lambda step: watch(step, pipeline))
        # By job: a picture that cannot be decoded is missing among those drawn.
        files = dict(zip(map(id, jobs), _numbered(output, len(jobs)), strict=True))
        yield from _written(
            (image, files[id(job)], _metadata(job, drawn_with, image, bundle))
            for job, image in drawn
        )
    for line in memory.told(engine.max_memory, whole=memory_report):
        click.echo(line, err=True)


@dataclass
class _Memory:
    """How pictures are drawn as far as memory goes, and what that takes.

    `known` says whether it is known beforehand what models will be asked for: neither for sizes
    that pictures to begin with bring along, nor for prompts of any length.
    """

    pipeline: Pipeline
    settings: Settings
    tuning: Tuning
    in_turn: bool
    known: bool
    previews: bool
    peaks: PhasePeaks = field(default_factory=PhasePeaks)

    def limit(self, most: int) -> None:
        """Chooses a way that is expected to stay below `most` bytes. Raises InputError if none."""
        if not self.in_turn:
            raise InputError(
                "--max-memory needs the parts in turn: leave out --keep-loaded, --preview and "
                "several streams"
            )
        if not self.known or self.previews:
            raise InputError(
                "--max-memory goes without --image, --long-prompts and --preview: what those take "
                "is not foreseen"
            )
        self.pipeline.economy = choose_economy(
            self.pipeline, self.settings, self.tuning.batch, most
        )

    def drawn(
        self, jobs: Sequence[Job], cache: EmbeddingCache | None, on_step: OnStep
    ) -> Iterator[tuple[Job, Image.Image]]:
        """Draws in the way that was chosen."""
        pipeline, settings, tuning = self.pipeline, self.settings, self.tuning
        if self.in_turn:
            return draw_in_phases(
                pipeline, jobs, settings, batch=tuning.batch, cache=cache,
                on_phase=self.peaks.begin, on_step=on_step,
            )  # fmt: skip
        self.peaks.begin(ALL_PARTS)
        return stream(
            pipeline, jobs, settings, batch=tuning.batch, lanes=tuning.streams, on_step=on_step
        )

    def told(self, most: int | None, *, whole: bool) -> Iterator[str]:
        """Lines about what was taken: all, or only that it was more than the limit."""
        if whole:
            expected = self.known and not self.previews and expected_peaks(
                self.pipeline, self.settings, self.tuning.batch, self.pipeline.economy,
                in_turn=self.in_turn, streams=self.tuning.streams,
            )  # fmt: skip
            parts = "parts in turn" if self.in_turn else "all parts loaded"
            economy = self.pipeline.economy
            if not (self.in_turn and self.known):
                economy = replace(economy, ahead=False)
            title = f"{parts}, {economy.describe()}"
            yield from report(title, expected or {}, self.peaks.peaks)
        taken = max(self.peaks.peaks.values(), default=0)
        if most is not None and taken > most:
            yield f"{taken / 1e9:.2f} GB were taken, more than the limit of {most / 1e9:.2f} GB"


def _bundled(pipeline: Pipeline, *, fast: bool | None) -> Settings:
    """The bundle's settings. Raises InputError when `fast` demands shortcuts that it has not."""
    if fast is None:
        return pipeline.settings
    plain = bundled_settings(pipeline.folder, fast=False)
    if fast and pipeline.settings == plain:
        raise InputError(
            f"{pipeline.folder} was evaluated without shortcuts, so there is nothing for --fast. "
            "Build it with a recipe whose `runtime` section has some, or ask for them one by one, "
            "unmeasured: --cache-interval, --guidance-end, fewer --steps."
        )
    return pipeline.settings if fast else plain


def _require_drawable(jobs: Sequence[Job], settings: Settings, *, preview: bool) -> None:
    """A fault in the last prompt is told before the first is drawn."""
    if preview and len(jobs) > 1:
        raise InputError("--preview shows one picture; draw them one by one")
    require_readable(jobs, settings)


def _written(pictures: Iterable[tuple[Image.Image, Path, dict[str, str]]]) -> Iterator[Path]:
    """Writes pictures beside other work, with what they tell, and yields their files."""
    waiting: deque[Future[Path]] = deque()
    with ThreadPoolExecutor(1) as writing:
        for picture in pictures:
            waiting.append(writing.submit(_save, *picture))
            while waiting and waiting[0].done():
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _require_png(output: Path) -> None:
    if not output.parent.is_dir():
        raise InputError(f"{output}: the folder {output.parent} does not exist")
    if output.suffix.lower() != ".png":
        raise InputError(f"{output}: pictures are written as PNG; give a name ending in .png")


class _Watch:
    """A progress bar for calls of the UNet, told from several threads; and previews."""

    def __init__(self, calls: int, label: str, preview: Path | None) -> None:
        self._bar = click.progressbar(length=calls, label=label)
        self._preview = preview
        self._lock = threading.Lock()

    def __enter__(self) -> "_Watch":
        self._bar.__enter__()
        return self

    def __exit__(self, *fault: Any) -> None:
        self._bar.__exit__(*fault)

    def __call__(self, step: Step, pipeline: Pipeline) -> None:
        with self._lock:
            self._bar.update(1)
            if self._preview and step.done % 5 == 0 and step.done < step.calls:
                told = {"preview": f"{step.done} of {step.calls}"}
                save_png(pipeline.preview(step.clean), self._preview, told)


def _save(image: Image.Image, file: Path, text: dict[str, str]) -> Path:
    save_png(image, file, text)
    return file


def _metadata(job: Job, settings: Settings, image: Image.Image, bundle: Path) -> dict[str, str]:
    told: dict[str, object] = {
        "prompt": job.prompt,
        "negative_prompt": job.negative_prompt,
        "seed": job.seed,
    }
    told |= {field.name: getattr(settings, field.name) for field in fields(settings)}
    if job.image is not None:
        told["strength"] = job.strength
    told |= {"width": image.width, "height": image.height, "bundle": bundle.name}
    return {name: str(value) for name, value in told.items()}


def _numbered(output: Path, count: int) -> list[Path]:
    if count == 1:
        return [output]
    digits = max(3, len(str(count - 1)))
    return [output.with_stem(f"{output.stem}_{index:0{digits}d}") for index in range(count)]


def _parse_size(size: str) -> tuple[int, int]:
    width, separator, height = size.lower().partition("x")
    if not separator or not width.isdecimal() or not height.isdecimal():
        raise InputError(f"--size {size}: expected WIDTHxHEIGHT in pixels, for example 512x512")
    if max(int(width), int(height)) > _MAX_SIDE:
        raise InputError(f"--size {size}: at most {_MAX_SIDE} pixels a side")
    return int(width), int(height)
