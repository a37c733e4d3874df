"""Metrics against implementations that are not ours, and statistics against simulation."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from toy_model import write_toy_model

from sdcompress.demo import CLIP_DIR
from sdcompress.errors import EvaluationError
from sdcompress.evaluate import memory_limit
from sdcompress.evaluate.clip_score import Clip, ClipScorer, locate_scorer
from sdcompress.evaluate.clip_similarity import clip_similarities
from sdcompress.evaluate.cmmd import cmmd
from sdcompress.evaluate.fid import features, fid
from sdcompress.evaluate.layer_errors import measure_layers
from sdcompress.evaluate.lpips import Lpips
from sdcompress.evaluate.memory_limit import least_memory_bytes, require_memory_limits
from sdcompress.evaluate.ms_ssim import ms_ssim, scales
from sdcompress.evaluate.performance import measure_footprint, measure_performance, ratios, side_of
from sdcompress.evaluate.picture_tensor import load_tensor
from sdcompress.evaluate.pictures import Pictures, Shot, Variant, draw_pictures, picture_files
from sdcompress.evaluate.psnr import PSNR_CEILING_DB, psnr_db
from sdcompress.evaluate.records import Footprint, MemorySample
from sdcompress.evaluate.sqnr import (
    CEILING_DB,
    latent_sqnr,
    measure_sqnr,
    sqnr_db,
    trace,
    unet_sqnr,
)
from sdcompress.evaluate.ssim import ssim
from sdcompress.evaluate.statistics import mean_interval
from sdcompress.prompts import Prompt
from sdcompress.runtime import Pipeline, Settings
from sdcompress.runtime.prompting import PromptEncoder
from sdcompress.store import write_record

STAR = Prompt("a green star")
SCORER = ClipScorer("demo", CLIP_DIR)


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
    assert psnr_db(*map(load_tensor, pair)) == pytest.approx(
        peak_signal_noise_ratio(a, b), abs=1e-3
    )


def test_ssim_agrees_with_scikit_image(pair: tuple[Path, Path]) -> None:
    from skimage.metrics import structural_similarity

    a, b = (np.asarray(Image.open(file)) for file in pair)
    expected = structural_similarity(
        a, b, channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert ssim(*map(load_tensor, pair)) == pytest.approx(expected, abs=5e-3)


def test_equal_pictures_reach_the_ceiling(pair: tuple[Path, Path]) -> None:
    same = load_tensor(pair[0])
    assert psnr_db(same, same) == PSNR_CEILING_DB
    assert ssim(same, same) == pytest.approx(1.0, abs=1e-5)
    assert ms_ssim(same, same) == pytest.approx(1.0, abs=1e-5)


def test_ms_ssim_is_that_of_its_scales() -> None:
    """One scale is SSIM itself; five are the paper's weights over pictures halved by averaging."""
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    random = np.random.default_rng(0)
    import torch

    big = torch.from_numpy(random.uniform(0, 255, (1, 3, 512, 512))).float()
    noisy = (big + 20 * torch.randn(big.shape, generator=torch.manual_seed(0))).clamp(0, 255)
    assert scales(512) == 5
    assert scales(128) == 4
    assert scales(16) == 2
    expected = multiscale_structural_similarity_index_measure(noisy, big, data_range=255.0)
    assert ms_ssim(big, noisy) == pytest.approx(float(expected), abs=1e-5)
    assert 0 <= ms_ssim(big[..., :128, :128], 255 - big[..., :128, :128]) < 0.1


def test_clip_similarity_agrees_with_torch() -> None:
    import torch

    one, other = (torch.randn(5, 64, generator=torch.manual_seed(seed)) for seed in (0, 1))
    expected = torch.nn.functional.cosine_similarity(one, other)
    found = clip_similarities(one.numpy(), other.numpy())
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)
    assert clip_similarities(one.numpy(), 3 * one.numpy()) == pytest.approx(np.ones(5))


def test_cmmd_agrees_with_the_sum_over_all_pairs() -> None:
    from scipy.spatial.distance import cdist

    random = np.random.default_rng(0)
    one, other = random.normal(0, 1, (20, 16)), random.normal(0.3, 1, (30, 16))
    units = [values / np.linalg.norm(values, axis=1, keepdims=True) for values in (one, other)]

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.exp(-cdist(a, b, "sqeuclidean") / 200).mean())

    expected = kernel(units[0], units[0]) + kernel(units[1], units[1]) - 2 * kernel(*units)
    assert cmmd(one, other) == pytest.approx(1000 * expected)
    assert cmmd(one, one) == pytest.approx(0, abs=1e-9)


def test_fid_agrees_with_the_formula() -> None:
    from scipy.linalg import sqrtm

    random = np.random.default_rng(0)
    one, other = random.normal(0, 1, (200, 6)), random.normal(0.2, 1.3, (150, 6))
    covariances = [np.cov(values, rowvar=False) for values in (one, other)]
    shift = ((one.mean(0) - other.mean(0)) ** 2).sum()
    root = np.real(sqrtm(covariances[0] @ covariances[1]))
    expected = shift + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert fid(one, other) == pytest.approx(expected, rel=1e-6)
    assert fid(one, one) == pytest.approx(0, abs=1e-6)


def test_networks_that_users_bring_along_are_asked(pair: tuple[Path, Path], tmp_path: Path) -> None:
    import openvino as ov
    from openvino import opset13 as opset

    def saved(name: str, sizes: list[list[int]], build: Any) -> Path:
        inputs = [opset.parameter(size, np.float32) for size in sizes]
        ov.save_model(ov.Model([build(*inputs)], inputs), tmp_path / name, compress_to_fp16=False)
        return tmp_path / name

    def channels(picture: ov.Node) -> ov.Node:
        return opset.reduce_mean(picture, np.array([2, 3]), keep_dims=False)

    def distance(one: ov.Node, other: ov.Node) -> ov.Node:
        return opset.reduce_mean(
            opset.abs(opset.subtract(one, other)), np.array([0, 1, 2, 3]), False
        )

    any_size = [1, 3, -1, -1]
    means = saved("features.xml", [any_size], channels)
    expected = [np.asarray(Image.open(one)).mean((0, 1)) for one in pair]
    np.testing.assert_allclose(features(pair, means), expected, rtol=1e-5)
    fixed = saved("fixed.xml", [[1, 3, 16, 32]], channels)
    expected = [np.asarray(Image.open(one).resize((32, 16), 3)).mean((0, 1)) for one in pair]
    np.testing.assert_allclose(features(pair, fixed), expected, rtol=1e-5)
    before, after = map(load_tensor, pair)
    differ = saved("lpips.xml", [any_size, any_size], distance)
    exact = float((before - after).abs().mean()) / 127.5
    assert Lpips(differ)(before, after) == pytest.approx(exact, rel=1e-5)

    with pytest.raises(EvaluationError, match=r"evaluate\.lpips: .* has 1 inputs instead of 2"):
        Lpips(means)
    with pytest.raises(EvaluationError, match=r"evaluate\.fid_features: .* has 2 inputs"):
        features(pair, differ)
    with pytest.raises(EvaluationError, match=r"evaluate\.fid_features: .* cannot take a picture"):
        features(pair, saved("odd.xml", [[1, 5, -1, -1]], channels))
    with pytest.raises(EvaluationError, match=r"cannot be read as OpenVINO IR"):
        features(pair, pair[0])


def test_sqnr_of_known_noise() -> None:
    signal = np.random.default_rng(0).standard_normal(100_000)
    noise = np.random.default_rng(1).standard_normal(100_000)
    assert sqnr_db(signal, signal + 0.1 * noise) == pytest.approx(20.0, abs=0.1)
    assert sqnr_db(signal, signal) == CEILING_DB


def test_clip_scores_agree_with_the_clip_model_itself(pair: tuple[Path, Path]) -> None:
    import torch
    from transformers import CLIPModel, CLIPProcessor

    prompts = ["a large green star", "a small red circle " + "above a blue ring " * 40]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' own
        seen = Clip(SCORER).look(pair, prompts, lambda: None)
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
    np.testing.assert_allclose(seen.scores, expected.numpy(), atol=1e-3)
    embeddings = seen.embeddings / np.linalg.norm(seen.embeddings, axis=-1, keepdims=True)
    np.testing.assert_allclose(embeddings, out.image_embeds.numpy(), atol=1e-5)


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
        found = mean_interval(candidate - baseline, resamples=1000, seed=trial)
        hits += found.low <= -0.3 <= found.high
    assert 0.91 <= hits / trials <= 0.985


def test_equal_differences_have_no_width() -> None:
    found = mean_interval(np.array([-0.5, -0.5, -0.5]))
    assert (found.mean, found.low, found.high) == (-0.5, -0.5, -0.5)


@pytest.mark.parametrize("values", [[1.0], [1.0, float("nan")]])
def test_intervals_of_nothing_are_refused(values: list[float]) -> None:
    with pytest.raises(EvaluationError):
        mean_interval(np.array(values))


def variant(folder: Path, steps: int, precision: str | None = "f32") -> Variant:
    settings = Settings(steps=steps, guidance_scale=5.0, scheduler="dpmsolver++")
    return Variant(folder, "CPU", precision, settings)


def test_sqnr_of_the_int8_unet_lies_between_noise_and_equality(
    bundle: Path, baseline: Path
) -> None:
    one, other = variant(baseline, 4), variant(bundle, 4)
    pipelines = [one.open(), other.open()]
    reference, own = (trace(each, Shot(STAR, 0), one.settings) for each in pipelines)
    equal, damaged = (unet_sqnr(each, reference.calls) for each in pipelines)
    assert list(damaged) == sorted(damaged, reverse=True)
    assert len(damaged) == 4
    assert all(5 < db < 60 for db in damaged.values())
    assert all(db == CEILING_DB for db in equal.values())
    assert all(db == CEILING_DB for db in latent_sqnr(reference, reference).values())
    drifted = latent_sqnr(reference, own)
    assert list(drifted) == list(damaged)
    assert all(5 < db < 60 for db in drifted.values())
    # After the first call both still have nearly the same noise; in the end the errors added up.
    first, *_, last = drifted.values()
    assert first > last


def test_a_trajectory_is_kept_whole(baseline: Path, tmp_path: Path) -> None:
    one = variant(baseline, 3)
    pipeline = one.open()
    traced = trace(pipeline, Shot(STAR, 7), one.settings)
    traced.save(tmp_path / "calls.npz")
    again = type(traced).load(tmp_path / "calls.npz")
    for ours, theirs in zip(traced.after_calls(), again.after_calls(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    image = pipeline.generate(STAR.text, seed=7, settings=one.settings)
    np.testing.assert_array_equal(pipeline.decode(again.clean)[0], np.asarray(image))


def test_layers_that_were_left_alone_keep_their_outputs(
    bundle: Path, baseline: Path, tmp_path: Path
) -> None:
    one = variant(baseline, 3)
    call, scratch = tmp_path / "call", tmp_path / "scratch"
    scratch.mkdir()
    trace(one.open(), Shot(STAR, 0), one.settings).middle().save(call)
    told: list[tuple[int, int]] = []
    same = measure_layers(
        one, one, call, scratch, lambda *numbers: told.append(numbers), most_bytes=5_000_000
    )
    runs = told[-1][1]
    assert 4 <= runs <= 12
    assert told == [(number, runs) for number in range(1, runs + 1)]
    assert len(same.layers) > 50
    assert all(layer.sqnr_db == CEILING_DB for layer in same.layers)
    found = measure_layers(one, variant(bundle, 3), call, scratch, lambda *_: None)
    by_kind = {layer.precision: layer.sqnr_db for layer in found.layers}
    assert {"int8"} <= set(by_kind)
    assert [layer.name for layer in found.layers] == [layer.name for layer in same.layers]
    assert all(5 < layer.sqnr_db <= CEILING_DB for layer in found.layers)
    assert not list(scratch.iterdir())


def test_the_footprint_is_measured_in_another_process(bundle: Path) -> None:
    found = measure_footprint(variant(bundle, 4), STAR.text)
    assert 0 < found.unet_step_seconds < found.image_seconds
    assert sum(found.parts_seconds.values()) == pytest.approx(found.image_seconds, rel=0.01)
    assert found.parts_seconds["unet"] > 3 * found.unet_step_seconds
    assert found.peak_rss_bytes > found.peak_anonymous_bytes > 10e6
    assert 10e6 < found.load_peak_rss_bytes <= found.peak_rss_bytes
    assert 10 < len(found.memory) <= 300
    times = [one.seconds for one in found.memory]
    assert times == sorted(times)
    assert times[0] < found.loaded_at < times[-1]
    assert max(found.load_peak_anonymous_bytes, found.draw_peak_anonymous_bytes) == (
        found.peak_anonymous_bytes
    )
    highest = max(one.anonymous_bytes for one in found.memory)
    assert highest <= found.peak_anonymous_bytes
    files = [file for file in bundle.rglob("*") if file.is_file() and "report" not in file.parts]
    drawing = [file for file in files if file.name != "manifest.json"]
    assert found.disk_bytes == sum(file.stat().st_size for file in drawing)


def test_a_failing_child_is_reported_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"failed \(exit 1\).*model_index"):
        measure_footprint(variant(tmp_path, 4), STAR.text)


def footprint(image_seconds: float, peak_rss_bytes: int) -> Footprint:
    parts = dict.fromkeys(("text_encoder", "unet", "vae_decoder", "other"), image_seconds / 4)
    memory = (MemorySample(0.0, 10, peak_rss_bytes - 10),)
    return Footprint(
        1.0, 0.2, image_seconds, parts, peak_rss_bytes, 70, 60, 50, 85, 65, 40, 0.5, memory
    )  # fmt: skip


def test_turns_are_put_together_by_their_medians() -> None:
    before = [footprint(seconds, 90) for seconds in (5.0, 9.0, 6.0)]
    after = [footprint(seconds, peak) for seconds, peak in ((2.5, 40), (3.0, 50), (4.5, 45))]
    found = side_of(after)
    assert (found.image_seconds.median, found.image_seconds.low, found.image_seconds.high) == (
        3.0, 2.5, 4.5,
    )  # fmt: skip
    assert found.parts_seconds["unet"] == 0.75
    assert found.memory == after[1].memory  # of the turn with the highest peak
    # Each turn with its neighbour: 0.5, 0.33 and 0.75.
    ratio = ratios(before, after)["image_seconds"]
    assert (ratio.median, ratio.high) == (0.5, 0.75)


def test_a_negative_prompt_is_encoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[str] = []
    plain = PromptEncoder.encode

    def noting(encoder: PromptEncoder, texts: list[str], settings: Settings) -> Any:
        encoded.extend(texts)
        return plain(encoder, texts, settings)

    monkeypatch.setattr(PromptEncoder, "encode", noting)
    one = Variant(write_toy_model(tmp_path / "model"), "CPU", "f32", Settings(steps=2))
    shots = [Shot(Prompt(text), 1) for text in ("a red ring", "a star", "a circle")]
    draw_pictures(one, shots, tmp_path, lambda *_: None)
    assert sorted(encoded) == ["", "a circle", "a red ring", "a star"]
    pipeline = Pipeline.load(one.folder, execution_precision="f32", verify="never")
    for shot in shots:
        drawn = pipeline.generate(shot.prompt.text, seed=1, settings=one.settings)
        with Image.open(tmp_path / shot.file_name) as picture:
            assert picture.tobytes() == drawn.tobytes()


def test_a_killed_drawing_goes_on_with_the_next_picture(bundle: Path, tmp_path: Path) -> None:
    one = variant(bundle, 2, None)
    shots = [Shot(STAR, 5), Shot(Prompt("a red circle"), 6), Shot(STAR, 7)]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    killed.mkdir()
    whole.mkdir()
    draw_pictures(one, shots[:1], killed, lambda *_: None)
    first = killed / shots[0].file_name
    before = first.stat().st_mtime_ns
    seen: list[tuple[int, int]] = []
    draw_pictures(one, shots, killed, lambda *numbers: seen.append(numbers))
    assert first.stat().st_mtime_ns == before
    assert seen == [(1, 3), (2, 3), (3, 3)]
    draw_pictures(one, shots, whole, lambda *_: None)
    mine, others = Pictures.load(killed, shots), Pictures.load(whole, shots)
    assert mine.execution_precisions == others.execution_precisions
    assert len(set(mine.files)) == 3  # the seed counts
    for file, other in zip(mine.files, others.files, strict=True):
        assert file.read_bytes() == other.read_bytes()
    assert {file.name for file in killed.iterdir()} == set(picture_files(shots))


def test_killed_measurements_tell_at_once_what_was_done(
    bundle: Path, baseline: Path, tmp_path: Path
) -> None:
    steps, told = 2, []
    sides = variant(baseline, steps), variant(bundle, steps, None)

    def stop(done: int, _total: int) -> None:
        if done == 2 * steps:
            raise KeyboardInterrupt

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    shots = [Shot(STAR, 3)]
    expected = measure_sqnr(*sides, shots, whole, lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        measure_sqnr(*sides, shots, killed, stop)
    found = measure_sqnr(*sides, shots, killed, lambda *numbers: told.append(numbers))
    assert told[0] == (steps, 5 * steps)  # the baseline's calls were kept
    assert told[-1] == (5 * steps, 5 * steps)
    assert found.unet_db == pytest.approx(expected.unet_db, abs=0.5)
    assert found.latents_db == pytest.approx(expected.latents_db, abs=0.5)


def test_processes_measured_before_are_told_at_once(bundle: Path, tmp_path: Path) -> None:
    kept = footprint(5.0, 90)
    for name in ("baseline-0", "candidate-0", "baseline-1"):
        write_record(tmp_path / f"{name}.json", Footprint, kept)
    told: list[tuple[int, int]] = []
    one = variant(bundle, 2)
    found = measure_performance(
        one, one, STAR.text, 2, tmp_path, lambda *numbers: told.append(numbers)
    )
    assert told == [(3, 4), (4, 4)]
    assert found.baseline == side_of([kept, kept])
    assert found.candidate.peak_rss_bytes.high > 10e6


def test_the_smallest_memory_limit_lies_near_the_peak(bundle: Path) -> None:
    one = variant(bundle, 2, None)
    peak = int(measure_footprint(one, STAR.text).peak_rss_bytes)
    told: list[tuple[int, int]] = []
    try:
        require_memory_limits()
    except EvaluationError as refusal:
        assert "lets nobody here set a memory limit" in str(refusal)
        pytest.skip(str(refusal))
    found = least_memory_bytes(one, STAR.text, peak, lambda *numbers: told.append(numbers), tries=2)
    assert told == [(1, 3), (2, 3), (3, 3)]
    # Of 0.1 to 2 times the peak, a quarter is left; much less than the peak cannot suffice.
    assert 0.55 * peak < found < 1.6 * peak
    with memory_limit._group() as group:
        assert not memory_limit._draws(one, STAR.text, group, peak // 8, seconds=60)
