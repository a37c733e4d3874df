"""Metrics against implementations that are not ours, and statistics against simulation."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdcompress.demo import CLIP_DIR
from sdcompress.errors import EvaluationError
from sdcompress.evaluate import Contest, measure_performance, measure_sqnr
from sdcompress.evaluate.clip_score import ClipScorer, clip_scores, locate_scorer
from sdcompress.evaluate.fidelity import PSNR_CEILING_DB, psnr_db, sqnr_db, ssim
from sdcompress.evaluate.footprint import measure_footprint
from sdcompress.evaluate.pictures import draw_pictures
from sdcompress.evaluate.records import Footprint
from sdcompress.evaluate.sqnr import record_calls, unet_sqnr
from sdcompress.evaluate.statistics import paired_difference
from sdcompress.prompts import Prompt
from sdcompress.runtime import Pipeline, Settings
from sdcompress.store import write_record


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A smooth picture and a noisy version of it."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[0:96, 0:80]
    smooth = np.stack([rows * 2, columns * 3, (rows + columns)], axis=-1) % 256
    noisy = np.clip(smooth + random.normal(0, 12, smooth.shape), 0, 255)
    files = tmp_path / "a.png", tmp_path / "b.png"
    for file, values in zip(files, (smooth, noisy), strict=True):
        Image.fromarray(values.astype(np.uint8)).save(file)
    return files


def test_psnr_agrees_with_scikit_image(pair: tuple[Path, Path]) -> None:
    from skimage.metrics import peak_signal_noise_ratio

    a, b = (np.asarray(Image.open(file)) for file in pair)
    assert psnr_db(*pair) == pytest.approx(peak_signal_noise_ratio(a, b), abs=1e-3)


def test_ssim_agrees_with_scikit_image(pair: tuple[Path, Path]) -> None:
    from skimage.metrics import structural_similarity

    a, b = (np.asarray(Image.open(file)) for file in pair)
    expected = structural_similarity(
        a, b, channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert ssim(*pair) == pytest.approx(expected, abs=5e-3)


def test_equal_pictures_reach_the_ceiling(pair: tuple[Path, Path]) -> None:
    assert psnr_db(pair[0], pair[0]) == PSNR_CEILING_DB
    assert ssim(pair[0], pair[0]) == pytest.approx(1.0, abs=1e-5)


def test_sqnr_of_known_noise() -> None:
    signal = np.random.default_rng(0).standard_normal(100_000)
    noise = np.random.default_rng(1).standard_normal(100_000)
    assert sqnr_db(signal, signal + 0.1 * noise) == pytest.approx(20.0, abs=0.1)
    assert sqnr_db(signal, signal) == PSNR_CEILING_DB


def test_clip_scores_agree_with_the_clip_model_itself(pair: tuple[Path, Path]) -> None:
    import torch
    from transformers import CLIPModel, CLIPProcessor

    prompts = ["a large green star", "a small red circle " + "above a blue ring " * 40]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' own
        scores = clip_scores(pair, prompts, ClipScorer("demo", CLIP_DIR))
        model = CLIPModel.from_pretrained(CLIP_DIR).float().eval()
        processor = CLIPProcessor.from_pretrained(CLIP_DIR, backend="pil")
    pictures = [Image.open(file).convert("RGB") for file in pair]
    batch = processor(
        text=prompts, images=pictures, return_tensors="pt", padding=True, truncation=True,
        max_length=77,
    )  # fmt: skip
    with torch.inference_mode():
        out = model(**batch)
    expected = 100 * (out.image_embeds * out.text_embeds).sum(-1).clamp(min=0)
    np.testing.assert_allclose(scores, expected.numpy(), atol=1e-3)


@pytest.mark.parametrize("scorer", ["no/such-scorer", "."])
def test_a_missing_scorer_says_what_to_do(
    scorer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(EvaluationError, match=r"--set evaluate\.scorer=FOLDER"):
        locate_scorer(scorer)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    hits = 0
    trials = 300
    for trial in range(trials):
        baseline = random.normal(30, 3, 60)
        candidate = baseline - 0.3 + random.exponential(1.0, 60) - 1.0  # skewed, mean -0.3
        found = paired_difference(baseline, candidate, resamples=1000, seed=trial)
        hits += found.low <= -0.3 <= found.high
    assert 0.91 <= hits / trials <= 0.985


def test_equal_differences_have_no_width() -> None:
    found = paired_difference(np.array([1.0, 2.0, 3.0]), np.array([0.5, 1.5, 2.5]))
    assert (found.mean, found.low, found.high) == (-0.5, -0.5, -0.5)


@pytest.mark.parametrize("values", [[1.0], [1.0, float("nan")]])
def test_intervals_of_nothing_are_refused(values: list[float]) -> None:
    with pytest.raises(EvaluationError):
        paired_difference(np.array(values), np.array(values))


def test_sqnr_of_the_int8_unet_lies_between_noise_and_equality(
    bundle: Path, baseline: Path
) -> None:
    one = Pipeline.load(baseline, execution_precision="f32")
    other = Pipeline.load(bundle, execution_precision="f32")
    settings = Settings(steps=4, guidance_scale=5.0, scheduler="dpmsolver++")
    prompts = [Prompt("a green star")]
    calls = record_calls(one, prompts, 0, settings)
    damaged, equal = unet_sqnr(other, calls), unet_sqnr(one, calls)
    assert list(damaged) == sorted(damaged, reverse=True)
    assert len(damaged) == 4
    assert all(5 < db < 60 for db in damaged.values())
    assert all(db == PSNR_CEILING_DB for db in equal.values())


def test_the_footprint_is_measured_in_another_process(bundle: Path) -> None:
    found = measure_footprint(
        bundle,
        prompt="a green star",
        settings=Settings(steps=4),
        images=1,
        device="CPU",
        execution_precision="f32",
    )
    assert 0 < found.unet_step_seconds < found.image_seconds
    assert found.peak_rss_bytes > found.peak_anonymous_bytes > 10e6
    files = [file for file in bundle.rglob("*") if file.is_file() and "report" not in file.parts]
    drawing = [file for file in files if file.name != "manifest.json"]
    assert found.disk_bytes == sum(file.stat().st_size for file in drawing)


def test_a_failing_child_is_reported_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"failed \(exit 1\).*model_index"):
        measure_footprint(
            tmp_path,
            prompt="a",
            settings=Settings(),
            images=1,
            device="CPU",
            execution_precision=None,
        )


def test_the_least_disturbed_turn_counts_for_time_and_the_worst_for_memory() -> None:
    quick, slow = Footprint(1.0, 0.2, 5.0, 90, 70, 40), Footprint(2.0, 0.1, 6.0, 100, 60, 40)
    assert Footprint.undisturbed([slow, quick]) == Footprint(1.0, 0.1, 5.0, 100, 70, 40)


def test_a_killed_drawing_goes_on_with_the_next_picture(bundle: Path, tmp_path: Path) -> None:
    pipeline = Pipeline.load(bundle)
    settings = Settings(steps=2)
    prompts = [Prompt("a green star"), Prompt("a red circle")]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    killed.mkdir()
    whole.mkdir()
    first = draw_pictures(pipeline, prompts[:1], 5, settings, killed).files[0]
    before = first.stat().st_mtime_ns
    seen: list[tuple[int, int]] = []
    drawn = draw_pictures(
        pipeline, prompts, 5, settings, killed, lambda done, total: seen.append((done, total))
    )
    assert first.stat().st_mtime_ns == before
    assert seen == [(1, 2), (2, 2)]
    again = draw_pictures(pipeline, prompts, 5, settings, whole)
    for one, other in zip(drawn.files, again.files, strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert sorted(killed.iterdir()) == list(drawn.files)


def test_killed_measurements_tell_at_once_what_was_done(
    bundle: Path, baseline: Path, tmp_path: Path
) -> None:
    steps, told = 2, []
    contest = Contest(
        baseline,
        bundle,
        "CPU",
        Settings(steps=steps, guidance_scale=5.0, scheduler="dpmsolver++"),
        (Prompt("a green star"),),
        seed=3,
        scorer=ClipScorer("demo", CLIP_DIR),
    )

    def stop(done: int, _total: int) -> None:
        if done == 2 * steps:
            raise KeyboardInterrupt

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    expected = measure_sqnr(contest, 1, whole, lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        measure_sqnr(contest, 1, killed, stop)
    found = measure_sqnr(contest, 1, killed, lambda done, total: told.append((done, total)))
    assert told[0] == (steps, 3 * steps)  # the baseline's calls were kept
    assert [done for done, _ in told[1 : steps + 1]] == list(range(steps + 1, 2 * steps + 1))
    assert told[-1] == (3 * steps, 3 * steps)
    assert found.candidate_db == pytest.approx(expected.candidate_db, abs=0.5)


def test_processes_measured_before_are_told_at_once(bundle: Path, tmp_path: Path) -> None:
    contest = Contest(
        bundle, bundle, "CPU", Settings(steps=2), (Prompt("a green star"),), 0,
        ClipScorer("demo", CLIP_DIR),
    )  # fmt: skip
    kept = Footprint(1.0, 0.2, 5.0, 90, 70, 40)
    for name in ("baseline-0", "candidate-0", "baseline-1"):
        write_record(tmp_path / f"{name}.json", Footprint, kept)
    told: list[tuple[int, int]] = []
    found = measure_performance(contest, 2, tmp_path, lambda *numbers: told.append(numbers))
    assert told == [(3, 4), (4, 4)]
    assert found.baseline == kept
    assert found.candidate.peak_rss_bytes > 10e6
