"""Pictures drawn part after part, so that no two large models are in memory at once.

All prompts are encoded, then all pictures denoised, then all decoded. Each model is compiled once,
whatever the number of pictures, and what waits between the parts is small: embeddings and latents.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy

import numpy as np
from PIL import Image

from sdcompress.runtime.arrays import Float32
from sdcompress.runtime.begin import Start
from sdcompress.runtime.denoise import OnStep
from sdcompress.runtime.embeddings import EmbeddingCache
from sdcompress.runtime.errors import InputError, SdcompressError
from sdcompress.runtime.pipeline import Pipeline
from sdcompress.runtime.prompting import Texts, require_readable
from sdcompress.runtime.settings import Job, Settings

OnPhase = Callable[[str], None]  # told which component begins to work
_log = logging.getLogger(__name__)


def draw_in_phases(
    pipeline: Pipeline,
    jobs: Sequence[Job],
    settings: Settings | None = None,
    *,
    batch: int = 1,
    cache: EmbeddingCache | None = None,
    on_phase: OnPhase = lambda _: None,
    on_step: OnStep | None = None,
) -> Iterator[tuple[Job, Image.Image]]:
    """Draw the jobs and yield each with its picture, in their order, when all are denoised.

    `batch` pictures go through the UNet together. Embeddings in `cache` are not computed again; new
    ones are added to it. When denoising ends early, by a fault, by `on_step` or from the keyboard,
    what is denoised already is decoded and yielded before the fault is raised; so are the other
    pictures when one cannot be decoded.
    """
    if batch < 1:
        raise InputError(f"batch is {batch}; it must be at least 1.")
    settings = settings or pipeline.settings
    batch = min(batch, len(jobs)) or 1
    groups = [jobs[begin : begin + batch] for begin in range(0, len(jobs), batch)]
    decoder = pipeline.decoder(settings).name
    with_images = any(job.image for job in jobs)
    try:
        on_phase("text_encoder")
        # What cannot be drawn is told before anything is compiled.
        require_readable(jobs, settings)
        starts = [] if with_images else _begun(pipeline, groups, settings)
        with _compiled_ahead(pipeline, jobs, settings, batch):
            texts = _encoded(pipeline, groups, settings, cache)
            pipeline.release("text_encoder")
        if with_images:
            on_phase("vae_encoder")
            starts = _begun(pipeline, groups, settings)
            pipeline.release("vae_encoder")
        on_phase("unet")
        latents, fault = _denoised(pipeline, starts, texts, settings, on_step)
        del starts, texts
        pipeline.release("unet", "tiny_decoder")  # which previews may have used
        if fault and latents:
            _log.warning("Stopped; the pictures that are denoised are decoded first.")
        on_phase(decoder)
        for job, one in zip(jobs, latents, strict=False):
            try:
                picture = pipeline.decode(one[None], settings)[0]
            except SdcompressError as broken:
                fault = fault or broken
                continue
            yield job, Image.fromarray(picture)
    finally:
        pipeline.release("text_encoder", "vae_encoder", "unet", decoder)
    if fault:
        raise fault


@contextmanager
def _compiled_ahead(
    pipeline: Pipeline, jobs: Sequence[Job], settings: Settings, batch: int
) -> Iterator[None]:
    """Compiles the UNet beside the block, where it is known what it will be asked for."""
    known = jobs and not settings.long_prompts and all(job.image is None for job in jobs)
    if not (pipeline.economy.ahead and known):
        yield
        return
    with ThreadPoolExecutor(1) as beside:
        compiling = beside.submit(pipeline.compile_unet, settings, batch)
        yield
        compiling.result()


def _encoded(
    pipeline: Pipeline,
    groups: Sequence[Sequence[Job]],
    settings: Settings,
    cache: EmbeddingCache | None,
) -> Callable[[int], Texts]:
    """The embeddings of a group, by its number: equal prompts of different groups share theirs."""
    if settings.long_prompts:  # as long as the longest of the group, so not to be shared
        each = [pipeline.prompts.encode_jobs(group, settings) for group in groups]
        return each.__getitem__
    used = {text for group in groups for job in group for text in (job.prompt, job.negative_prompt)}
    known = cache.load(used, settings) if cache else {}
    found = set(known)
    pipeline.prompts.warn_of_cuts(found, settings)
    for group in groups:
        pipeline.prompts.encode_jobs(group, settings, known)
    if cache:
        cache.save({text: one for text, one in known.items() if text not in found}, settings)
    return lambda number: pipeline.prompts.encode_jobs(groups[number], settings, known)


def _begun(
    pipeline: Pipeline, groups: Sequence[Sequence[Job]], settings: Settings
) -> list[list[Start]]:
    return [[pipeline.begin(job, settings) for job in group] for group in groups]


def _denoised(
    pipeline: Pipeline,
    starts: Sequence[Sequence[Start]],
    texts: Callable[[int], Texts],
    settings: Settings,
    on_step: OnStep | None,
) -> tuple[list[Float32], BaseException | None]:
    """Clean latents [4, h/8, w/8] of the pictures, as far as they came, and what ended it."""
    latents: list[Float32] = []
    for number, group in enumerate(starts):
        # A last batch of fewer pictures would need another compilation, which takes longer. The
        # last picture fills it; its noise must not come from the same stream.
        missing = len(starts[0]) - len(group)
        filled = [*group, *(deepcopy(group[-1]) for _ in range(missing))]
        try:
            clean = pipeline.denoise(
                filled, *_filled(texts(number), missing), settings, on_step=on_step
            )
        except (Exception, KeyboardInterrupt) as fault:  # noqa: BLE001  # raised again later
            _forget_frames(fault)
            return latents, fault
        latents.extend(clean[: len(group)])
    return latents, None


def _forget_frames(fault: BaseException) -> None:
    """Clears the tracebacks of a fault and of those behind it: they would keep the UNet."""
    waiting: list[BaseException | None] = [fault]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            one.__traceback__ = None
            waiting += [one.__cause__, one.__context__]


def _filled(texts: Texts, missing: int) -> Texts:
    """The last picture's embeddings again, `missing` times."""

    def filled(embeddings: Float32) -> Float32:
        return np.concatenate([embeddings, *[embeddings[-1:]] * missing])

    conditional, unconditional = texts
    return filled(conditional), unconditional if unconditional is None else filled(unconditional)
