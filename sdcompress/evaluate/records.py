"""What an evaluation measured. Plain records; the report writes them down, the gate judges them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sdcompress.evaluate.metrics import Metric

Outcome = Literal["passed", "failed", "undecided"]
TURN_FIGURES = (  # measured in every turn; a side has their spread
    "load_seconds",
    "unet_step_seconds",
    "image_seconds",
    "peak_rss_bytes",
    "peak_anonymous_bytes",
    "load_peak_rss_bytes",
    "load_peak_anonymous_bytes",
    "draw_peak_rss_bytes",
    "draw_peak_anonymous_bytes",
)


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % confidence interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """A value and, where one can be had, its 95 % confidence interval."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Change:
    """How one metric tells two sets of pictures apart.

    `value` is the mean paired difference, second - first, for a metric of single pictures; the mean
    over the pairs for a metric of pairs; the distance for a metric of whole sets. `baseline` and
    `candidate` are the means of a picture metric. `worst` is the pair that lost most.
    """

    value: Estimate
    samples: int
    baseline: float | None = None
    candidate: float | None = None
    worst: float | None = None


@dataclass(frozen=True)
class MetricResult:
    """A metric's verdict on the candidate, and on harmless changes for comparison.

    `yardsticks` holds what the same metric says when the baseline itself is executed in bf16, takes
    fewer steps or begins with another seed; by the name of the change.
    """

    metric: Metric
    change: Change
    yardsticks: Mapping[str, Change]


@dataclass(frozen=True)
class Skipped:
    """A metric that was not measured, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Sqnr:
    """SQNR of the denoising in dB by timestep, mean over prompts and guidance branches.

    `unet_db` compares the UNets' outputs for the same inputs, those of the baseline's trajectory;
    `latents_db` the latents that each side reaches by itself. The floors are what the execution
    precision alone costs: the baseline's weights, executed as the candidate is. They are empty
    where that is float32. `decoder_ssim` compares, prompt by prompt, what the two VAE decoders make
    of the baseline's clean latents.
    """

    unet_db: Mapping[int, float]
    unet_floor_db: Mapping[int, float]
    latents_db: Mapping[int, float]
    latents_floor_db: Mapping[int, float]
    decoder_ssim: tuple[float, ...]

    @property
    def least_unet_db(self) -> float:
        """That of the worst timestep."""
        return min(self.unet_db.values())


@dataclass(frozen=True)
class LayerError:
    """A layer of the candidate, and the SQNR of its output in dB."""

    name: str
    type: str
    precision: str
    sqnr_db: float


@dataclass(frozen=True)
class LayerErrors:
    """The UNet layers both sides have, in graph order, and the timestep of the call."""

    timestep: int
    layers: tuple[LayerError, ...]


@dataclass(frozen=True)
class Sample:
    """One pair of pictures drawn from the same prompt, seed and scheduler.

    `scores` has both sides' values of each picture metric, baseline first, `likeness` the values of
    the pair metrics.
    """

    prompt: str
    negative_prompt: str
    category: str | None
    seed: int
    baseline: Path
    candidate: Path
    scores: Mapping[str, tuple[float, float]]
    likeness: Mapping[str, float]


@dataclass(frozen=True)
class Look:
    """One look of a sequential evaluation at the values that a budget is judged by.

    `low` and `high` are its repeated confidence interval, which holds however often one looks.
    """

    budget: str
    samples: int
    mean: float
    low: float
    high: float
    outcome: Outcome


@dataclass(frozen=True)
class Quality:
    """All metrics, what the yardsticks are, and the looks of a sequential evaluation."""

    metrics: tuple[MetricResult, ...]
    skipped: tuple[Skipped, ...]
    yardsticks: Mapping[str, str]
    sqnr: Sqnr
    layer_errors: LayerErrors
    looks: tuple[Look, ...] = ()

    def of(self, name: str) -> MetricResult:
        """Returns the result of a metric. Raises KeyError when it was not measured."""
        for result in self.metrics:
            if result.metric.name == name:
                return result
        raise KeyError(name)


@dataclass(frozen=True)
class MemorySample:
    """A process's memory at one moment; the seconds count from its start."""

    seconds: float
    anonymous_bytes: int
    file_bytes: int


@dataclass(frozen=True)
class Footprint:
    """One pipeline in a child process of its own.

    `parts_seconds` are the parts of a picture: text encoder, unet, vae_decoder and other. Peaks of
    loading and of drawing are apart; `loaded_at` is when the one ended and the other began, on the
    clock of `memory`. Resident memory counts mapped weight files, which the system
    can reclaim; anonymous memory does not.
    """

    load_seconds: float
    unet_step_seconds: float
    image_seconds: float
    parts_seconds: Mapping[str, float]
    peak_rss_bytes: int
    peak_anonymous_bytes: int
    load_peak_rss_bytes: int
    load_peak_anonymous_bytes: int
    draw_peak_rss_bytes: int
    draw_peak_anonymous_bytes: int
    disk_bytes: int
    loaded_at: float
    memory: tuple[MemorySample, ...]


@dataclass(frozen=True)
class Spread:
    """The median of several turns, the least and the most."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Side:
    """One side's turns put together. `memory` is that of the turn with the highest peak, and
    `loaded_at` the moment in it when everything was loaded."""

    load_seconds: Spread
    unet_step_seconds: Spread
    image_seconds: Spread
    parts_seconds: Mapping[str, float]
    peak_rss_bytes: Spread
    peak_anonymous_bytes: Spread
    load_peak_rss_bytes: Spread
    load_peak_anonymous_bytes: Spread
    draw_peak_rss_bytes: Spread
    draw_peak_anonymous_bytes: Spread
    disk_bytes: int
    loaded_at: float
    memory: tuple[MemorySample, ...]
    least_memory_bytes: int | None = None


@dataclass(frozen=True)
class Performance:
    """Both sides, and ratios candidate / baseline of the turns, each turn with its neighbour."""

    baseline: Side
    candidate: Side
    ratios: Mapping[str, Spread]


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
    """One budget of the recipe, judged. `kind` says which side of the limit is allowed.

    `value` is what was measured, with its interval where it is an estimate from samples. `more` is
    about how many more samples would decide an undecided one; None where no number that anybody
    draws would.
    """

    name: str
    limit: float
    value: float
    low: float | None
    high: float | None
    outcome: Outcome
    more: int | None
    kind: str  # "max" or "min"

    @property
    def passed(self) -> bool:
        return self.outcome == "passed"
