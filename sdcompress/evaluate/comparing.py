"""Compares the pictures of two variants by every metric."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sdcompress.evaluate import clip_similarity, cmmd, fid, lpips, ms_ssim, psnr, ssim
from sdcompress.evaluate.looking import Instruments, Seen
from sdcompress.evaluate.metrics import Metric
from sdcompress.evaluate.network import named
from sdcompress.evaluate.picture_tensor import load_tensor
from sdcompress.evaluate.records import Change, Estimate, Skipped
from sdcompress.evaluate.statistics import mean_interval

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Likeness:
    """How alike the pictures of each pair are: the values of each pair metric, in order."""

    values: dict[str, tuple[float, ...]]


def pixel_metrics(instruments: Instruments) -> tuple[Metric, ...]:
    """The metrics that compare the two pictures of a pair pixel by pixel or through a network."""
    network = instruments.lpips
    learned = (lpips.metric(named(network)),) if network else ()
    return (psnr.METRIC, ssim.METRIC, ms_ssim.METRIC, *learned)


def compare_pixels(
    baseline: Sequence[Path],
    candidate: Sequence[Path],
    instruments: Instruments,
    on_pair: Callable[[], None],
) -> Likeness:
    """Measures every pair by the `pixel_metrics`."""
    measures: dict[str, Callable[[Any, Any], float]] = {
        psnr.METRIC.name: psnr.psnr_db,
        ssim.METRIC.name: ssim.ssim,
        ms_ssim.METRIC.name: ms_ssim.ms_ssim,
    }
    if instruments.lpips:
        measures["lpips"] = lpips.Lpips(instruments.lpips)
    values: dict[str, list[float]] = {name: [] for name in measures}
    for pair in zip(baseline, candidate, strict=True):
        before, after = map(load_tensor, pair)
        for name, measure in measures.items():
            values[name].append(measure(before, after))
        on_pair()
    return Likeness({name: tuple(found) for name, found in values.items()})


def changes(
    instruments: Instruments,
    picture_metrics: Sequence[Metric],
    baseline: Seen,
    candidate: Seen,
    likeness: Likeness,
) -> Iterator[tuple[Metric, Change]]:
    """Every metric's word on the difference of two sets of pictures, of the same shots each.

    `picture_metrics` are those of the instruments, which load plug-ins to tell them.
    """
    for metric in picture_metrics:
        found = _of_pictures(metric, baseline, candidate)
        if found:
            yield metric, found
    name = instruments.scorer.made_by
    similar = clip_similarity.clip_similarities(baseline.embeddings, candidate.embeddings)
    alike = {clip_similarity.metric(name): similar}
    alike |= {one: np.array(likeness.values[one.name]) for one in pixel_metrics(instruments)}
    for metric, values in alike.items():
        yield metric, _mean_change(metric, values)
    count = len(baseline.embeddings)
    distance = cmmd.cmmd(baseline.embeddings, candidate.embeddings)
    yield cmmd.metric(name), Change(Estimate(distance), count)
    if instruments.fid_features:
        if baseline.features is None or candidate.features is None:
            raise ValueError("the pictures were looked at with other instruments")
        distance = fid.fid(baseline.features, candidate.features)
        yield fid.metric(named(instruments.fid_features)), Change(Estimate(distance), count)


def judged_values(name: str, baseline: Seen, candidate: Seen, likeness: Likeness) -> Array:
    """What a budget is judged by, float64 [n]: differences of a picture metric, or likeness."""
    if name in baseline.scores:
        return np.asarray(candidate.scores[name] - baseline.scores[name])
    if name == "clip_similarity":
        return clip_similarity.clip_similarities(baseline.embeddings, candidate.embeddings)
    return np.array(likeness.values[name])


def skipped(instruments: Instruments) -> tuple[Skipped, ...]:
    """The metrics that nothing at hand can measure, and what would."""
    missing = []
    if not instruments.fid_features:
        reason = "no feature network: --set evaluate.fid_features=FILE names one, as IR or ONNX"
        missing.append(Skipped("FID", reason))
    if not instruments.lpips:
        reason = "no weights: --set evaluate.lpips=FILE names a network, as IR or ONNX"
        missing.append(Skipped("LPIPS", reason))
    return tuple(missing)


def _of_pictures(metric: Metric, baseline: Seen, candidate: Seen) -> Change | None:
    """The paired difference, over the pictures that have a value; None if fewer than two have."""
    before, after = baseline.scores[metric.name], candidate.scores[metric.name]
    stated = np.isfinite(before) & np.isfinite(after)
    before, after = before[stated], after[stated]
    if len(before) < 2:
        return None
    return replace(
        _mean_change(metric, after - before),
        baseline=float(before.mean()),
        candidate=float(after.mean()),
    )


def _mean_change(metric: Metric, values: Array) -> Change:
    interval = mean_interval(values)
    low, high = interval.low, interval.high
    if metric.kind == "pair":  # differences have other ends than the metric
        low = low if metric.low is None else max(low, metric.low)
        high = high if metric.high is None else min(high, metric.high)
    worst = values.min() if metric.better == "higher" else values.max()
    estimate = Estimate(interval.mean, low, high)
    return Change(estimate, len(values), worst=float(worst))
