"""Finds what a candidate is judged with, before any long work: prompts, scorer, networks."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sdcompress.demo import CLIP_DIR
from sdcompress.errors import CalibrationError, EvaluationError
from sdcompress.evaluate import fid
from sdcompress.evaluate.checker import speaks_of_scenes
from sdcompress.evaluate.clip_score import ClipScorer, locate_scorer
from sdcompress.evaluate.looking import Instruments
from sdcompress.evaluate.lpips import Lpips
from sdcompress.evaluate.memory_limit import require_memory_limits
from sdcompress.evaluate.plugins import find_plugins
from sdcompress.prompts import Prompt, draw_prompts, read_prompts
from sdcompress.recipe import DEMO, Recipe

_HUB_SCORER = "openai/clip-vit-large-patch14"


@dataclass(frozen=True)
class Judging:
    """What a run is judged with; `available` prompts are in the set that `prompts` are of."""

    prompts: tuple[Prompt, ...]
    available: int
    instruments: Instruments


def find_judging(recipe: Recipe, calibrated_on: Sequence[Prompt]) -> Judging:
    """Locates evaluation prompts, scorer and networks.

    Raises a SdcompressError for whatever cannot be used, and, unless the recipe allows it, when
    prompts are calibrated on too.
    """
    chosen = recipe.evaluate
    if chosen.least_memory:
        require_memory_limits()
    available = read_prompts(chosen.prompt_set)
    prompts = draw_prompts(chosen.prompt_set, available, chosen.prompts, chosen.seed)
    if not chosen.allow_overlap:
        _require_disjoint(calibrated_on, prompts)
    find_plugins(chosen.scorers)
    features = _file(chosen.fid_features, "evaluate.fid_features")
    distance = _file(chosen.lpips, "evaluate.lpips")
    if features:
        fid.load(features)
    if distance:
        Lpips(distance)
    instruments = Instruments(
        scorer=_scorer(recipe),
        checker=speaks_of_scenes([one.text for one in prompts]),
        plugins=tuple(chosen.scorers),
        fid_features=features,
        lpips=distance,
    )
    return Judging(prompts, len(available), instruments)


def _require_disjoint(calibration: Sequence[Prompt], evaluation: Sequence[Prompt]) -> None:
    shared = {_plain(one.text) for one in calibration} & {_plain(one.text) for one in evaluation}
    if shared:
        raise CalibrationError(
            f"{len(shared)} prompts are in the calibration and in the evaluation set, for "
            f"example '{min(shared)}': a model judged on them looks better than it is. Choose "
            "other prompts, or say --set evaluate.allow_overlap=true"
        )


def _plain(text: str) -> str:
    """Prompts that differ in case and spaces only are the same to the model."""
    return " ".join(text.lower().split())


def _scorer(recipe: Recipe) -> ClipScorer:
    if recipe.evaluate.scorer is None and recipe.model == DEMO:
        return ClipScorer(DEMO, CLIP_DIR)
    return locate_scorer(recipe.evaluate.scorer or _HUB_SCORER)


def _file(path: str | None, key: str) -> Path | None:
    if path is None:
        return None
    file = Path(path).expanduser()
    if not file.is_file():
        raise EvaluationError(f"{key}: {path} is no file; name an OpenVINO IR (.xml) or ONNX file")
    return file
