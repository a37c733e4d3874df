"""Many pictures at once: the same ones, in order, really at the same time, stopped at once."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_model import write_toy_model

from sdcompress.runtime import (
    InputError,
    Job,
    NotFiniteError,
    Pipeline,
    Settings,
    Step,
    draw_in_phases,
    stream,
)
from sdcompress.runtime.components import Component
from sdcompress.runtime.prompting import PromptEncoder

QUICK = Settings(steps=3)
JOBS = [Job("a red circle", seed=seed) for seed in range(7)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_model(tmp_path_factory.mktemp("toy") / "model")


def load(folder: Path, streams: int = 1) -> Pipeline:
    return Pipeline.load(folder, execution_precision="f32", streams=streams)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of components, one for each compilation in the test."""
    names: list[str] = []
    plain = Component._compile

    def counting(component: Component, *asked: Any) -> object:
        names.append(component.name)
        return plain(component, *asked)

    monkeypatch.setattr(Component, "_compile", counting)
    return names


@pytest.mark.parametrize(("batch", "lanes"), [(1, 1), (1, 3), (2, 1), (2, 2), (8, 1)])
def test_pictures_come_in_order_and_are_those_drawn_alone(
    folder: Path, batch: int, lanes: int
) -> None:
    alone = load(folder)
    expected = [np.asarray(alone.draw([job], QUICK)[0], int) for job in JOBS]
    drawn = list(stream(load(folder, lanes), JOBS, QUICK, batch=batch, lanes=lanes))
    assert [job for job, _ in drawn] == JOBS
    for (_, picture), wanted in zip(drawn, expected, strict=True):
        assert np.abs(np.asarray(picture, int) - wanted).max() <= 1


def test_nothing_is_compiled_twice_for_a_last_batch_of_fewer(
    folder: Path, compiled: list[str]
) -> None:
    pipeline = load(folder, 2)
    assert len(list(stream(pipeline, JOBS, QUICK, batch=3, lanes=2))) == len(JOBS)
    assert sorted(compiled) == ["text_encoder", "unet", "vae_decoder"]


def test_two_lanes_of_different_shapes_keep_their_models(folder: Path, compiled: list[str]) -> None:
    """Prompts of one and of two pieces in turn need two models, but not one for each step."""
    pipeline = load(folder, 2)
    jobs = [Job(prompt) for prompt in ("red", "red " * 80) * 3]
    long = Settings(steps=6, long_prompts=True)
    assert len(list(stream(pipeline, jobs, long, lanes=2))) == 6
    assert compiled.count("unet") == 2


def test_distinct_prompts_are_encoded_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, encoded = load(folder), []
    plain = pipeline.prompts.encode

    def counting(texts: list[str], settings: Settings) -> object:
        encoded.extend(texts)
        return plain(texts, settings)

    monkeypatch.setattr(pipeline.prompts, "encode", counting)
    assert len(list(stream(pipeline, JOBS, QUICK))) == len(JOBS)
    assert sorted(encoded) == ["", "a red circle"]


def test_what_was_compiled_before_any_shape_was_known_is_replaced(folder: Path) -> None:
    pipeline = load(folder)
    pipeline.execution_precisions()
    pipeline.generate("red", settings=QUICK)
    shapes = [port.partial_shape for port in pipeline.compiled_models()["unet"].inputs]
    assert all(shape.is_static for shape in shapes)


def test_lanes_work_at_the_same_time(folder: Path) -> None:
    """Every lane waits in its first step until the other two are there as well."""
    meeting = threading.Barrier(3, timeout=20)

    def meet(step: Step) -> None:
        if step.done == 1:
            meeting.wait()

    drawn = list(stream(load(folder, 3), JOBS[:3], QUICK, lanes=3, on_step=meet))
    assert len(drawn) == 3


def test_decoding_overlaps_with_the_next_denoising(folder: Path) -> None:
    """The first picture is decoded only when the second is being denoised."""
    pipeline = load(folder)
    second_began = threading.Event()
    plain = pipeline.decode

    def decode(latents: np.ndarray, settings: Settings) -> np.ndarray:
        assert second_began.wait(20)
        return plain(latents, settings)

    pipeline.decode = decode  # type: ignore[method-assign]
    calls: list[Step] = []

    def watch(step: Step) -> None:
        calls.append(step)
        if len(calls) > len(pipeline.plan(QUICK)):
            second_began.set()

    assert len(list(stream(pipeline, JOBS[:2], QUICK, on_step=watch))) == 2


def test_leaving_early_stops_the_work(folder: Path) -> None:
    pipeline = load(folder)
    calls: list[Step] = []
    drawn = stream(pipeline, JOBS, QUICK, on_step=calls.append)
    next(drawn)
    drawn.close()  # type: ignore[attr-defined]
    assert len(calls) < len(JOBS) * len(pipeline.plan(QUICK))


def test_a_fault_in_one_picture_reaches_the_caller(tmp_path: Path) -> None:
    broken = load(write_toy_model(tmp_path / "model", unet_gain=float("inf")))
    with pytest.raises(NotFiniteError, match="UNet"):
        list(stream(broken, JOBS, QUICK, lanes=2))


def test_a_picture_size_that_changes_is_compiled_for(folder: Path) -> None:
    pipeline = load(folder)
    for width in (32, 64, 32):
        picture = pipeline.generate("red", settings=Settings(steps=2, width=width))
        assert picture.width == width


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"lanes": 0}])
def test_nothing_at_a_time_is_refused(folder: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(InputError, match="at least 1"):
        next(stream(load(folder), JOBS, QUICK, **wrong))  # type: ignore[arg-type]


@pytest.mark.parametrize("draw", [stream, draw_in_phases])
def test_equal_prompts_of_different_batches_are_encoded_once(
    folder: Path, draw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[str] = []
    plain = PromptEncoder.encode

    def noting(encoder: PromptEncoder, texts: list[str], settings: Settings) -> Any:
        encoded.extend(texts)
        return plain(encoder, texts, settings)

    monkeypatch.setattr(PromptEncoder, "encode", noting)
    jobs = [Job(text) for text in ("a red ring", "a star", "a red ring")]
    assert len(list(draw(load(folder), jobs, Settings(steps=2)))) == 3
    assert sorted(encoded) == ["", "a red ring", "a star"]
