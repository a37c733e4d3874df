"""Pictures drawn part after part, so that no two large models are in memory at once.

All prompts are encoded, then all pictures denoised, then all decoded. Each model is compiled once,
whatever the number of pictures, and what waits between the parts is small: embeddings and latents.
"""

from collections.abc import Callable, Iterator, Sequence

from PIL import Image

from sdcompress.runtime.arrays import Float32
from sdcompress.runtime.begin import Start
from sdcompress.runtime.denoise import OnStep
from sdcompress.runtime.embeddings import EmbeddingCache
from sdcompress.runtime.errors import CancelledError, InputError
from sdcompress.runtime.pipeline import Pipeline, Texts
from sdcompress.runtime.settings import Job, Settings

PHASES = ("text_encoder", "vae_encoder", "unet", "vae_decoder")

OnPhase = Callable[[str], None]  # told which part begins to work


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
    ones are added to it. When denoising is interrupted, by `on_step` or from the keyboard, what is
    denoised already is decoded and yielded before the interruption goes on.
    """
    if batch < 1:
        raise InputError(f"batch is {batch}; it must be at least 1.")
    settings = settings or pipeline.settings
    batch = min(batch, len(jobs)) or 1
    on_phase("text_encoder")
    texts = _encoded(pipeline, jobs, settings, cache)
    pipeline.release("text_encoder")
    starts = _begun(pipeline, jobs, settings, on_phase)
    on_phase("unet")
    latents: list[Float32] = []
    interruption: BaseException | None = None
    for begin in range(0, len(jobs), batch):
        # A last batch of fewer pictures would need another compilation, which takes longer.
        chosen = [min(index, len(jobs) - 1) for index in range(begin, begin + batch)]
        try:
            clean = pipeline.denoise(
                [starts[index] for index in chosen], *_rows(texts, chosen), settings,
                on_step=on_step,
            )  # fmt: skip
        except (CancelledError, KeyboardInterrupt) as fault:
            interruption = fault
            break
        latents.extend(clean[: len(jobs) - begin, None])
    del starts
    pipeline.release("unet")
    on_phase("vae_decoder")
    for job, one in zip(jobs, latents, strict=False):
        yield job, Image.fromarray(pipeline.decode(one)[0])
    pipeline.release("vae_decoder")
    if interruption:
        raise interruption


def _encoded(
    pipeline: Pipeline, jobs: Sequence[Job], settings: Settings, cache: EmbeddingCache | None
) -> Texts:
    if cache is None or settings.long_prompts:  # a long one's shape depends on those beside it
        return pipeline.encode_jobs(jobs, settings)
    texts = {text for job in jobs for text in (job.prompt, job.negative_prompt)}
    known = cache.load(texts, settings)
    found = set(known)
    encoded = pipeline.encode_jobs(jobs, settings, known)
    cache.save({text: one for text, one in known.items() if text not in found}, settings)
    return encoded


def _begun(
    pipeline: Pipeline, jobs: Sequence[Job], settings: Settings, on_phase: OnPhase
) -> list[Start]:
    if any(job.image for job in jobs):
        on_phase("vae_encoder")
    starts = [pipeline.begin(job, settings) for job in jobs]
    pipeline.release("vae_encoder")
    return starts


def _rows(texts: Texts, chosen: Sequence[int]) -> Texts:
    conditional, unconditional = texts
    picked: Float32 = conditional[chosen]
    return picked, unconditional if unconditional is None else unconditional[chosen]
