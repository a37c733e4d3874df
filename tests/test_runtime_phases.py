"""Parts used in turn draw the same pictures, give their memory back, and lose nothing."""

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toy_model import write_toy_model

from sdcompress.runtime import (
    CancelledError,
    Economy,
    EmbeddingCache,
    InputError,
    Job,
    Pipeline,
    Settings,
    Step,
    draw_in_phases,
)
from sdcompress.runtime.phases import PHASES

QUICK = Settings(steps=3)
JOBS = [Job("a red circle", "stars", seed=seed) for seed in range(5)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_model(tmp_path_factory.mktemp("toy") / "model")


def load(folder: Path, economy: Economy | None = None) -> Pipeline:
    return Pipeline.load(folder, execution_precision="f32", economy=economy)


def numbers(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture, int)


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_the_pictures_are_those_drawn_with_all_parts_loaded(folder: Path, batch: int) -> None:
    whole = load(folder)
    expected = [numbers(whole.draw([job], QUICK)[0]) for job in JOBS]
    phases: list[str] = []
    drawn = list(draw_in_phases(load(folder), JOBS, QUICK, batch=batch, on_phase=phases.append))
    assert [job for job, _ in drawn] == JOBS
    for (_, picture), wanted in zip(drawn, expected, strict=True):
        assert np.abs(numbers(picture) - wanted).max() <= 1
    assert phases == ["text_encoder", "unet", "vae_decoder"]
    with pytest.raises(InputError, match="batch is 0"):
        next(draw_in_phases(whole, JOBS, QUICK, batch=0))


def test_a_part_is_gone_before_the_next_works(folder: Path) -> None:
    pipeline = load(folder)
    parts = {part.name: part for part in pipeline._components()}
    alive: dict[str, set[str]] = {}
    compiled: dict[str, weakref.ref[object]] = {}

    def began(phase: str) -> None:
        for name, part in parts.items():
            if part._executables:
                compiled[name] = weakref.ref(part._executables[0])
        gc.collect()
        alive[phase] = {name for name, model in compiled.items() if model() is not None}

    list(draw_in_phases(pipeline, JOBS, QUICK, on_phase=began))
    assert alive == {phase: set() for phase in PHASES if phase != "vae_encoder"}
    assert not any(part._executables for part in parts.values())
    pipeline.draw(JOBS[:1], QUICK)  # what was given back is compiled again


def test_what_is_denoised_is_not_lost_when_it_is_stopped(folder: Path) -> None:
    calls = 0

    def third_call_of_the_third(step: Step) -> bool:
        nonlocal calls
        calls += 1
        return calls == 3 * step.calls

    finished = []
    with pytest.raises(CancelledError):
        for job, _ in draw_in_phases(load(folder), JOBS, QUICK, on_step=third_call_of_the_third):
            finished.append(job)
    assert finished == JOBS[:2]


def test_guidance_branches_one_after_the_other_draw_the_same(folder: Path) -> None:
    together = load(folder).draw(JOBS[:2], QUICK)
    apart = load(folder, Economy(branches_apart=True)).draw(JOBS[:2], QUICK)
    for one, other in zip(together, apart, strict=True):
        assert np.abs(numbers(one) - numbers(other)).max() <= 1


def test_each_branch_is_asked_with_its_own_prompt(folder: Path) -> None:
    pipeline = load(folder, Economy(branches_apart=True))
    conditional, unconditional = pipeline.encode_jobs(JOBS[:1], QUICK)
    asked: list[np.ndarray] = []

    def unet(sample: np.ndarray, timestep: float, text: np.ndarray) -> np.ndarray:
        asked.append(text)
        return pipeline.unet(sample, timestep, text)

    start = pipeline.begin(JOBS[0], QUICK)
    pipeline.denoise(start, conditional, unconditional, QUICK, unet=unet)
    assert unconditional is not None
    for index, text in enumerate(asked):
        np.testing.assert_array_equal(text, (unconditional, conditional)[index % 2])


def test_pictures_to_begin_with_are_encoded_before_the_unet_comes(
    baseline: Path, tmp_path: Path
) -> None:
    pipeline = Pipeline.load(baseline, execution_precision="f32", verify="never")
    start = Image.fromarray(np.full((128, 128, 3), 200, np.uint8))
    job = Job("a red circle", image=start, strength=0.5, seed=3)
    settings = Settings(steps=4)
    phases: list[str] = []
    ((_, drawn),) = draw_in_phases(pipeline, [job], settings, on_phase=phases.append)
    assert phases == list(PHASES)
    (expected,) = pipeline.draw([job], settings)
    assert drawn.tobytes() == expected.tobytes()


class TestEmbeddingCache:
    """Prompts encoded before."""

    def test_the_text_encoder_is_not_compiled_for_known_prompts(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cache = EmbeddingCache(tmp_path / "cache", "key")
        first = list(draw_in_phases(load(folder), JOBS[:1], QUICK, cache=cache))
        pipeline = load(folder)
        monkeypatch.setattr(pipeline._text_encoder, "_compile", None)
        again = list(draw_in_phases(pipeline, JOBS[:1], QUICK, cache=cache))
        assert first[0][1].tobytes() == again[0][1].tobytes()
        with pytest.raises(TypeError):  # another prompt has to be encoded
            list(draw_in_phases(pipeline, [Job("a star")], QUICK, cache=cache))

    def test_what_changes_an_embedding_has_a_name_of_its_own(self, tmp_path: Path) -> None:
        cache = EmbeddingCache(tmp_path, "key")
        values = np.ones((77, 8), np.float32)
        cache.save({"a (red:1.2) ring": values}, QUICK)
        assert set(cache.load(["a (red:1.2) ring", "a ring"], QUICK)) == {"a (red:1.2) ring"}
        weights = Settings(prompt_weights=True)
        assert cache.load(["a (red:1.2) ring"], weights) == {}
        assert EmbeddingCache(tmp_path, "other").load(["a (red:1.2) ring"], QUICK) == {}

    def test_a_damaged_file_counts_as_absent_and_the_oldest_go(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sdcompress.runtime.embeddings._MOST", 2)
        cache = EmbeddingCache(tmp_path, "key")
        values = np.ones((77, 8), np.float32)
        for age, text in enumerate(("old", "newer", "newest")):
            cache.save({text: values}, QUICK)
            path = cache._file(text, QUICK)
            if path.exists():
                import os

                os.utime(path, (age, age))
        cache.save({}, QUICK)
        assert set(cache.load(["old", "newer", "newest"], QUICK)) == {"newer", "newest"}
        cache._file("newest", QUICK).write_bytes(b"\x93NUMPY damaged")
        values[0, 0] = np.nan
        cache.save({"newer": values}, QUICK)
        assert cache.load(["newer", "newest"], QUICK) == {}

    def test_a_folder_without_hashes_has_no_cache(self, folder: Path, bundle: Path) -> None:
        assert EmbeddingCache.of(folder, ["CPU"]) is None
        assert EmbeddingCache.of(bundle, ["CPU"]) is not None
