"""What an evaluation measured. Plain records; the report writes them down, the gate judges them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class ClipScore:
    """Mean CLIP scores (100 x cosine) and the paired difference candidate - baseline, 95 %."""

    baseline: float
    candidate: float
    difference: Interval
    samples: int
    scorer: str


@dataclass(frozen=True)
class PairFidelity:
    """A pairwise picture metric over all samples: its mean and its worst value."""

    mean: float
    min: float


@dataclass(frozen=True)
class UnetSqnr:
    """SQNR of the UNet's output in dB by timestep, mean over prompts and guidance branches.

    `floor_db` is what the execution precision alone costs: the baseline's weights, executed as the
    candidate is. It is empty where that is float32.
    """

    candidate_db: Mapping[int, float]
    floor_db: Mapping[int, float]


@dataclass(frozen=True)
class Quality:
    clip_score: ClipScore
    psnr_db: PairFidelity
    ssim: PairFidelity
    unet_sqnr: UnetSqnr


@dataclass(frozen=True)
class Footprint:
    """One pipeline in a child process of its own."""

    load_seconds: float
    unet_step_seconds: float
    image_seconds: float
    peak_rss_bytes: int
    peak_anonymous_bytes: int
    disk_bytes: int

    @classmethod
    def undisturbed(cls, measured: "Sequence[Footprint]") -> "Footprint":
        """The best times and the highest peaks: other load only slows, and memory must suffice."""
        return cls(
            load_seconds=min(one.load_seconds for one in measured),
            unet_step_seconds=min(one.unet_step_seconds for one in measured),
            image_seconds=min(one.image_seconds for one in measured),
            peak_rss_bytes=max(one.peak_rss_bytes for one in measured),
            peak_anonymous_bytes=max(one.peak_anonymous_bytes for one in measured),
            disk_bytes=measured[0].disk_bytes,
        )


@dataclass(frozen=True)
class Performance:
    baseline: Footprint
    candidate: Footprint


@dataclass(frozen=True)
class Sample:
    """One pair of pictures drawn from the same prompt, seed and scheduler."""

    prompt: str
    seed: int
    baseline: Path
    candidate: Path
    clip_score_baseline: float
    clip_score_candidate: float
    psnr_db: float
    ssim: float


@dataclass(frozen=True)
class Scores:
    """CLIP scores and the pairs behind them."""

    clip: ClipScore
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class Evaluation:
    quality: Quality
    performance: Performance
    samples: tuple[Sample, ...]
    execution_precisions: Mapping[
        str, Mapping[str, str]
    ]  # baseline/compressed -> component -> name


@dataclass(frozen=True)
class ComponentSize:
    """One component before and after compression."""

    method: str
    baseline_bytes: int
    candidate_bytes: int
    layers_by_precision: Mapping[str, int]


@dataclass(frozen=True)
class BudgetResult:
    """One budget of the recipe, judged. `kind` says which side of the limit is allowed."""

    name: str
    limit: float
    value: float
    passed: bool
    kind: str  # "max" or "min"
