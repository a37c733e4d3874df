"""Many pictures: encoding, denoising and decoding of different ones overlap.

OpenVINO executes the requests of several threads side by side, in as many streams as its models
were compiled with.
"""

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sdcompress.runtime.arrays import Float32
from sdcompress.runtime.denoise import OnStep, Step
from sdcompress.runtime.errors import InputError
from sdcompress.runtime.pipeline import Pipeline
from sdcompress.runtime.prompting import Texts
from sdcompress.runtime.settings import Job, Settings


def stream(
    pipeline: Pipeline,
    jobs: Sequence[Job],
    settings: Settings | None = None,
    *,
    batch: int = 1,
    lanes: int = 1,
    on_step: OnStep | None = None,
) -> Iterator[tuple[Job, Image.Image]]:
    """Draw the jobs and yield each with its picture, in their order.

    `batch` pictures go through the UNet together, `lanes` such batches at the same time; each
    batch is decoded while the next is denoised. `on_step` is called from several threads. Leaving
    the iterator early stops the work that is under way.
    """
    for name, value in (("batch", batch), ("lanes", lanes)):
        if value < 1:
            raise InputError(f"{name} is {value}; it must be at least 1.")
    settings = settings or pipeline.settings
    batch = min(batch, len(jobs)) or 1
    known: dict[str, Float32] = {}
    stopped = threading.Event()

    def watch(step: Step) -> bool:
        return stopped.is_set() or bool(on_step and on_step(step))

    def encoded(group: Sequence[Job]) -> Texts:
        return pipeline.prompts.encode_jobs(group, settings, known)

    def denoised(group: Sequence[Job], texts: Future[Texts]) -> Float32:
        return pipeline.denoise_jobs(group, settings, texts=texts.result(), on_step=watch)

    def decoded(latents: Future[Float32], count: int) -> NDArray[np.uint8]:
        return pipeline.decode(latents.result()[:count], settings)

    waiting: deque[tuple[Sequence[Job], Future[NDArray[np.uint8]]]] = deque()
    encoding, denoising, decoding = (ThreadPoolExecutor(workers) for workers in (1, lanes, 1))
    try:
        for begin in range(0, len(jobs), batch):
            group = jobs[begin : begin + batch]
            # A last batch of fewer pictures would need another compilation, which takes longer.
            filled = [*group, *[group[-1]] * (batch - len(group))]
            latents = denoising.submit(denoised, filled, encoding.submit(encoded, filled))
            waiting.append((group, decoding.submit(decoded, latents, len(group))))
            if len(waiting) > lanes:  # no more than is under way or waits to be decoded
                yield from _finished(*waiting.popleft())
        while waiting:
            yield from _finished(*waiting.popleft())
    finally:
        stopped.set()
        encoding.shutdown(cancel_futures=True)
        denoising.shutdown(cancel_futures=True)
        decoding.shutdown(cancel_futures=True)


def _finished(
    group: Sequence[Job], pictures: Future[NDArray[np.uint8]]
) -> Iterator[tuple[Job, Image.Image]]:
    for job, picture in zip(group, pictures.result(), strict=True):
        yield job, Image.fromarray(picture)
