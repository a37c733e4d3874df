"""Parts used in turn draw the same pictures, give their memory back, and lose nothing."""

import os
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from toy_model import write_toy_model

from sdcompress.runtime import (
    BundleError,
    CancelledError,
    Economy,
    EmbeddingCache,
    InputError,
    Job,
    NotFiniteError,
    Pipeline,
    Settings,
    draw_in_phases,
)
from sdcompress.runtime.components import Component, TextEncoder, _Request
from sdcompress.runtime.economy import BRANCHES, IN_TURN, SIDE_BY_SIDE, TOGETHER

QUICK = Settings(steps=3)
JOBS = [
    Job(prompt, negative, seed=seed)
    for seed, (prompt, negative) in enumerate(
        [("a red circle", "stars"), ("a blue square", ""), ("3 stars", "a circle"),
         ("a red circle", ""), ("a small photo", "stars")]
    )
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_model(tmp_path_factory.mktemp("toy") / "model")


def load(folder: Path, economy: Economy | None = None) -> Pipeline:
    return Pipeline.load(folder, execution_precision="f32", economy=economy)


def numbers(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture, int)


@pytest.mark.parametrize("batch", [1, 2, 8])
@pytest.mark.parametrize("scheduler", ["pndm", "euler_ancestral"])
def test_the_pictures_are_those_drawn_with_all_parts_loaded(
    folder: Path, batch: int, scheduler: str
) -> None:
    whole, settings = load(folder), Settings(steps=3, scheduler=scheduler)
    expected = [numbers(whole.draw([job], settings)[0]) for job in JOBS]
    phases: list[str] = []
    drawn = draw_in_phases(load(folder), JOBS, settings, batch=batch, on_phase=phases.append)
    for (job, picture), wanted, index in zip(drawn, expected, range(len(JOBS)), strict=True):
        assert job is JOBS[index]
        assert np.abs(numbers(picture) - wanted).max() <= 1
    assert phases == ["text_encoder", "unet", "vae_decoder"]
    assert list(draw_in_phases(whole, [], settings)) == []
    with pytest.raises(InputError, match="batch is 0"):
        next(draw_in_phases(whole, JOBS, settings, batch=0))


def test_a_long_prompt_changes_no_other_picture(folder: Path) -> None:
    jobs = [Job("a red circle"), Job("a photo of a small blue square " * 30)]
    settings = Settings(steps=2, long_prompts=True)
    alone = load(folder).draw(jobs[:1], settings)[0]
    drawn = [picture for _, picture in draw_in_phases(load(folder), jobs, settings)]
    assert drawn[0].tobytes() == alone.tobytes()


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Tells which of the models that were compiled in the test are still there."""
    compiled: list[tuple[str, weakref.ref[object]]] = []
    plain = Component._compile

    def noting(component: Component, *asked: Any) -> Any:
        executable = plain(component, *asked)
        compiled.append((component.name, weakref.ref(executable)))
        return executable

    monkeypatch.setattr(Component, "_compile", noting)
    return lambda: [name for name, model in compiled if model() is not None]


@pytest.mark.parametrize("ahead", [True, False])
def test_a_part_is_gone_before_the_next_works(
    folder: Path, alive: Callable[[], list[str]], ahead: bool
) -> None:
    pipeline = load(folder, Economy(ahead=ahead))
    seen: dict[str, list[str]] = {}
    for _ in draw_in_phases(
        pipeline, JOBS, QUICK, on_phase=lambda phase: seen.update({phase: alive()})
    ):
        assert alive() == ["vae_decoder"]
    assert seen == {"text_encoder": [], "unet": ["unet"] * ahead, "vae_decoder": []}
    assert alive() == []
    pipeline.draw(JOBS[:1], QUICK)  # what was given back is compiled again
    assert sorted(alive()) == ["text_encoder", "unet", "vae_decoder"]


@pytest.mark.parametrize(
    "settings",
    [QUICK, Settings(steps=3, guidance_scale=1.0), Settings(steps=4, guidance_end=0.5),
     Settings(steps=2, width=64, height=32)],
)  # fmt: skip
@pytest.mark.parametrize("batch", [1, 2])
def test_what_is_compiled_beside_the_text_encoder_is_what_is_used(
    folder: Path, alive: Callable[[], list[str]], settings: Settings, batch: int
) -> None:
    before_use: list[str] = []
    drawn = draw_in_phases(
        load(folder), JOBS[:2], settings, batch=batch,
        on_phase=lambda phase: phase == "unet" and before_use.extend(alive()),
        on_step=lambda _: alive() != before_use,
    )  # fmt: skip
    assert len(list(drawn)) == 2  # no step saw another model
    assert before_use == ["unet"]


def test_a_fault_of_the_text_encoder_leaves_nothing(
    folder: Path, alive: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the UNet either, which is compiled meanwhile."""

    def breaking(encoder: TextEncoder, _: Any) -> Any:
        assert encoder.compiled
        raise NotFiniteError("text embeddings")

    monkeypatch.setattr(TextEncoder, "__call__", breaking)
    with pytest.raises(NotFiniteError):
        list(draw_in_phases(load(folder), JOBS, QUICK))
    assert alive() == []


def test_a_unet_that_cannot_be_compiled_is_told(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    pipeline = load(copy)
    (copy / "unet/openvino_model.xml").write_text("<net")
    with pytest.raises(BundleError, match=r"unet.openvino_model.xml is not a readable"):
        list(draw_in_phases(pipeline, JOBS, QUICK))


@pytest.mark.parametrize("fault", [KeyboardInterrupt, NotFiniteError("broken"), RuntimeError("x")])
def test_what_is_denoised_is_not_lost_when_it_ends_early(
    folder: Path, alive: Callable[[], list[str]], fault: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, calls = load(folder), 0
    plain = Component.infer_side_by_side

    def breaking(component: Component, runs: Any) -> Any:
        nonlocal calls
        if component.name == "unet":
            calls += 1
            if calls == 9:  # PNDM makes four calls in three steps: in the third picture
                raise fault
        return plain(component, runs)

    monkeypatch.setattr(Component, "infer_side_by_side", breaking)
    finished, seen = [], []
    with pytest.raises(fault if isinstance(fault, type) else type(fault)):
        for job, _ in draw_in_phases(
            pipeline, JOBS, QUICK, on_phase=lambda _: seen.append(alive())
        ):
            finished.append(job)
    assert finished == JOBS[:2]
    assert seen[-1] == []  # the fault did not keep the UNet


def test_a_fault_of_the_device_does_not_keep_the_unet(
    folder: Path, alive: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told in words of our own, with the device's behind them."""
    calls, seen = 0, []
    plain = _Request.start

    def breaking(request: _Request, values: Any, ports: Any) -> None:
        nonlocal calls
        if "timestep" in values:
            calls += 1
            if calls == 10:  # two branches, four calls: in the second picture
                raise RuntimeError("out of memory")
        plain(request, values, ports)

    monkeypatch.setattr(_Request, "start", breaking)
    with pytest.raises(InputError, match="out of memory") as caught:
        for _ in draw_in_phases(load(folder), JOBS, QUICK, on_phase=lambda _: seen.append(alive())):
            pass
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert seen[-2:] == [["unet"], []]


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (Job("a star", seed=-1), "seed"),
        (Job("a (star"), "never closed"),
        (Job("a star", latents=np.zeros((4, 9, 9), np.float32)), "initial latents"),
    ],
    ids=["seed", "weights", "latents"],
)
def test_what_cannot_be_drawn_is_told_before_anything_is_compiled(
    folder: Path, job: Job, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[str] = []
    plain = Component._compile

    def noting(component: Component, *asked: Any) -> Any:
        compiled.append(component.name)
        return plain(component, *asked)

    monkeypatch.setattr(Component, "_compile", noting)
    settings = Settings(steps=2, prompt_weights=True)
    with pytest.raises(InputError, match=words):
        list(draw_in_phases(load(folder), [*JOBS, job], settings))
    assert compiled == []


def test_a_step_callback_stops_it(folder: Path) -> None:
    steps = iter(range(100))
    drawn = draw_in_phases(load(folder), JOBS, QUICK, on_step=lambda _: next(steps) == 5)
    assert next(drawn)[0] is JOBS[0]
    with pytest.raises(CancelledError):
        next(drawn)


def test_one_picture_that_cannot_be_decoded_costs_no_other(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, decoded = load(folder), 0
    plain = pipeline.decode

    def breaking(latents: np.ndarray, settings: Settings) -> Any:
        nonlocal decoded
        decoded += 1
        if decoded == 2:
            raise NotFiniteError("the second")
        return plain(latents, settings)

    monkeypatch.setattr(pipeline, "decode", breaking)
    finished = []
    with pytest.raises(NotFiniteError, match="the second"):
        for job, _ in draw_in_phases(pipeline, JOBS, QUICK):
            finished.append(job)
    assert finished == [JOBS[0], *JOBS[2:]]


@pytest.mark.parametrize("branches", BRANCHES)
def test_however_the_branches_are_asked_for_the_pictures_are_the_same(
    folder: Path, branches: str
) -> None:
    usual = load(folder).draw(JOBS[:2], QUICK)
    drawn = load(folder, Economy(branches)).draw(JOBS[:2], QUICK)
    for one, other in zip(usual, drawn, strict=True):
        assert np.abs(numbers(one) - numbers(other)).max() <= 1


@pytest.mark.parametrize(
    ("branches", "scale", "calls"),
    [
        (TOGETHER, 7.5, [["both"]]),
        (SIDE_BY_SIDE, 7.5, [["no", "yes"]]),
        (IN_TURN, 7.5, [["no"], ["yes"]]),
        (None, 7.5, [["no", "yes"]]),
        (None, 1.0, [["yes"]]),
        (SIDE_BY_SIDE, 1.0, [["yes"]]),
    ],
)
def test_each_branch_is_asked_with_its_own_prompt(
    folder: Path,
    branches: str | None,
    scale: float,
    calls: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipeline, settings = load(folder, Economy(branches)), Settings(1, scale, "ddim")
    yes, no = pipeline.encode([JOBS[0].prompt, JOBS[0].negative_prompt])
    texts = {"yes": yes[None], "no": no[None], "both": np.stack([no, yes])}
    seen: list[list[str]] = []
    plain = Component.infer_side_by_side

    def noting(component: Component, runs: Any) -> Any:
        if component.name == "unet":
            given = [run["encoder_hidden_states"] for run in runs]
            seen.append(
                [next(n for n, t in texts.items() if np.array_equal(t, one)) for one in given]
            )
        return plain(component, runs)

    monkeypatch.setattr(Component, "infer_side_by_side", noting)
    pipeline.draw(JOBS[:1], settings)
    assert seen == calls


def test_pictures_to_begin_with_are_encoded_before_the_unet_comes(
    baseline: Path, tmp_path: Path
) -> None:
    pipeline = Pipeline.load(baseline, execution_precision="f32", verify="never")
    start = Image.fromarray(np.full((128, 128, 3), 200, np.uint8))
    job = Job("a red circle", image=start, strength=0.5, seed=3)
    settings = Settings(steps=4)
    phases: list[str] = []
    ((_, drawn),) = draw_in_phases(pipeline, [job], settings, on_phase=phases.append)
    assert phases == ["text_encoder", "vae_encoder", "unet", "vae_decoder"]
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

    def test_a_known_prompt_is_told_as_well_what_has_no_effect(
        self, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        cache, long = EmbeddingCache(tmp_path, "key"), Job("a photo of a small blue square " * 30)
        for _ in range(2):
            caplog.clear()
            list(draw_in_phases(load(folder), [long], QUICK, cache=cache))
            assert "this part has no effect" in caplog.text

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
                os.utime(path, (age, age))
        cache.save({}, QUICK)
        assert set(cache.load(["old", "newer", "newest"], QUICK)) == {"newer", "newest"}
        cache._file("newest", QUICK).write_bytes(b"\x93NUMPY damaged")
        values[0, 0] = np.nan
        cache.save({"newer": values}, QUICK)
        assert cache.load(["newer", "newest"], QUICK) == {}

    def test_a_folder_without_hashes_has_no_cache(self, folder: Path, bundle: Path) -> None:
        assert load(folder).prompt_cache() is None
        first, other = (
            Pipeline.load(bundle, execution_precision=one).prompt_cache() for one in ("f32", None)
        )
        assert first is not None
        assert other is not None
        same = first._file("x", QUICK) == other._file("x", QUICK)
        assert same == (Pipeline.load(bundle).execution_precisions("unet")["unet"] == "f32")
