"""The evaluation half of a run: draws, scores and measures baseline and candidate, stage by stage.

Both are finished pipeline folders; where they came from does not matter here. Pictures are kept for
each model and way to draw, so another candidate, or other prompts, draw only what is new.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sdcompress.errors import EvaluationError
from sdcompress.evaluate.acceptance import look, look_counts
from sdcompress.evaluate.comparing import Likeness, changes, judged_values, skipped
from sdcompress.evaluate.layer_errors import measure_layers
from sdcompress.evaluate.looking import Seen
from sdcompress.evaluate.memory_limit import least_memory_bytes
from sdcompress.evaluate.pairing import pair_up
from sdcompress.evaluate.performance import measure_footprint, measure_performance
from sdcompress.evaluate.pictures import Pictures, Shot, Variant, draw_pictures, picture_files
from sdcompress.evaluate.plugins import find_plugins
from sdcompress.evaluate.records import (
    Evaluation,
    Footprint,
    LayerErrors,
    Look,
    MetricResult,
    Performance,
    Quality,
    Side,
    Sqnr,
)
from sdcompress.evaluate.scoring import Exhibit, score_pictures
from sdcompress.evaluate.sqnr import MIDDLE_CALL, measure_sqnr
from sdcompress.gate import JUDGED_BY, least_mean
from sdcompress.identity import BASELINE, COMPRESSED
from sdcompress.ir import TINY_DECODER
from sdcompress.judging import Judging
from sdcompress.processor import processor_record
from sdcompress.progress import Advance, Progress
from sdcompress.prompts import Prompt
from sdcompress.recipe import Evaluate, Recipe
from sdcompress.runtime import NotFiniteError, Settings
from sdcompress.runtime.manifest import sha256_of
from sdcompress.store import Store, key_of, read_record
from sdcompress.ways import Folders, Way, absent_yardsticks, heading, ways_to_draw, yardsticks

SAMPLES = "samples"
LONG_STAGES = ("draw", "sqnr", "layers", "measure")


def shots_of(prompts: Sequence[Prompt], options: Evaluate) -> tuple[Shot, ...]:
    """What is drawn of prompts. Those without a negative prompt get the recipe's."""
    return tuple(
        Shot(replace(one, negative=one.negative or options.negative_prompt), options.seed + index)
        for index, one in enumerate(prompts)
    )


@dataclass(frozen=True)
class Trial:
    """Baseline against candidate, on the evaluation section of a recipe.

    `keys` name the two sides, and the candidate's tiny decoder, by their files, as far as those are
    made. `run` calls a function with its arguments and `on_progress`, for a large model in a
    process of its own.
    """

    recipe: Recipe
    store: Store
    progress: Progress
    run: Callable[..., Any]
    judging: Judging
    keys: Mapping[str, str]

    def evaluated(self, folders: Folders, report: Path) -> Evaluation:
        """Runs what is not in the store yet and copies the pictures to `report`/samples."""
        looks = self._looks(folders)
        count = looks[-1].samples if looks else len(self.shots)
        ways = self.ways(count)
        pictures = {name: self.draw(way, folders) for name, way in ways.items()}
        seen, likeness = self.score(ways, pictures)
        absent = absent_yardsticks(ways, self.recipe.evaluate.yardstick_prompts, self.recipe.device)
        quality = Quality(
            metrics=self._results(ways, seen, likeness),
            skipped=(*skipped(self.judging.instruments), *absent),
            yardsticks={name: heading(ways, name) for name in yardsticks(ways)},
            sqnr=self.sqnr(ways, folders),
            layer_errors=self._layer_errors(ways, folders),
            looks=looks,
        )
        return Evaluation(
            quality=quality,
            performance=self._performance(ways, folders),
            samples=pair_up(
                ways[BASELINE].shots,
                [(pictures[side], seen[side]) for side in (BASELINE, COMPRESSED)],
                likeness[COMPRESSED],
                report / SAMPLES,
            ),
            execution_precisions={
                side: pictures[side].execution_precisions for side in (BASELINE, COMPRESSED)
            },
        )

    def ways(self, count: int) -> dict[str, Way]:
        """Everything that is drawn of the first `count` shots: both sides, then the yardsticks."""
        few = self.recipe.evaluate.yardstick_prompts
        candidate = Settings(**self.recipe.candidate_settings)
        recipe = self.recipe
        return ways_to_draw(
            self._settings,
            candidate,
            self.shots[:count],
            few,
            recipe.device,
            recipe.execution_precision,
        )

    def finished(self) -> set[str]:
        """The names of the long stages that need not be run."""
        if not {BASELINE, COMPRESSED} <= self.keys.keys():
            return set()
        ways = self.ways(len(self.shots))
        done = {
            "draw": all(self.holds(way) for way in ways.values()),
            "sqnr": self.store.has("sqnr", self._sqnr_key(ways)),
            "layers": self.store.has("layers", self._layers_key(ways)),
            "measure": self.store.has("measure", self._performance_key(ways)),
        }
        return {name for name, is_done in done.items() if is_done}

    @cached_property
    def _settings(self) -> Settings:
        return Settings(**self.recipe.baseline_settings)

    @cached_property
    def shots(self) -> tuple[Shot, ...]:
        """What is drawn."""
        return shots_of(self.judging.prompts, self.recipe.evaluate)

    def _looks(self, folders: Folders) -> tuple[Look, ...]:
        """A sequential evaluation's looks: draws part after part, until all budgets are decided.

        One that is broken decides for all.
        """
        if not self.recipe.evaluate.sequential:
            return ()
        looks: list[Look] = []
        planned = len(self.shots)
        for count in look_counts(planned):
            both = {side: self.ways(count)[side] for side in (BASELINE, COMPRESSED)}
            seen, likeness = self.score(
                both, {side: self.draw(both[side], folders) for side in both}
            )
            pair = seen[BASELINE], seen[COMPRESSED], likeness[COMPRESSED]
            now = [
                look(name, judged_values(JUDGED_BY[name], *pair), least_mean(name, limit), planned)
                for name, limit in self.recipe.budgets.of_pictures.items()
            ]
            looks += now
            outcomes = {one.outcome for one in now}
            if "failed" in outcomes or "undecided" not in outcomes:
                break
        return tuple(looks)

    def _results(
        self, ways: Mapping[str, Way], seen: Mapping[str, Seen], likeness: Mapping[str, Likeness]
    ) -> tuple[MetricResult, ...]:
        instruments = self.judging.instruments
        picture_metrics = instruments.picture_metrics()
        found = {}
        for name, likes in likeness.items():
            baseline = seen[BASELINE].first(len(ways[name].shots))
            told = changes(instruments, picture_metrics, baseline, seen[name], likes)
            found[name] = {metric.name: (metric, change) for metric, change in told}
        whole = len(ways[BASELINE].shots)
        return tuple(
            MetricResult(
                metric,
                change,
                {
                    name: found[name][metric.name][1]
                    for name in yardsticks(ways)
                    # Distances of sets depend on how many pictures there are.
                    if metric.name in found[name]
                    and (metric.kind != "set" or len(ways[name].shots) == whole)
                },
            )
            for metric, change in found[COMPRESSED].values()
        )

    def _key(self, *sides: str, **inputs: object) -> str:
        """Hashes the sides' models, this machine and further inputs."""
        return key_of(
            models={side: self.keys[side] for side in sides},
            device=self.recipe.device,
            openvino=version("openvino"),
            processor=processor_record(),
            **inputs,
        )

    def _picture_key(self, way: Way) -> str:
        return self._key(**self._drawn_with(way))

    def _drawn_with(self, way: Way) -> dict[str, object]:
        """What pictures of a way to draw depend on, whatever they show."""
        tiny = way.settings.decoder == "tiny"
        return {
            "model": self.keys[way.side],
            "settings": asdict(way.settings),
            "precision": way.execution_precision,
            "tiny_decoder": self.keys.get(TINY_DECODER) if tiny else None,
        }

    def holds(self, way: Way) -> bool:
        """Whether all pictures of a way to draw are there."""
        return self.store.holds("pictures", self._picture_key(way), picture_files(way.shots))

    def draw(self, way: Way, folders: Folders) -> Pictures:
        """The pictures of one way to draw; those that are there are not drawn again.

        Raises NotFiniteError when the candidate overflows, and EvaluationError when the baseline
        does, which no other candidate can mend.
        """

        def build(folder: Path, advance: Advance) -> None:
            variant = way.variant(folders, self.recipe.device)
            try:
                self.run(draw_pictures, variant, way.shots, folder, on_progress=advance)
            except NotFiniteError as overflow:
                if way.side != BASELINE:
                    raise
                raise EvaluationError(
                    f"{way.title}: the model itself, before any compression, draws values that are "
                    "NaN or infinite, so that nothing can be compared with it: check its weights"
                ) from overflow

        detail = f"{way.title}, {len(way.shots)} pictures"
        key, files = self._picture_key(way), picture_files(way.shots)
        shelf = self.store.shelf(self.progress, "draw", "pictures", key, detail, files, build)
        return Pictures.load(shelf, way.shots)

    def score(
        self, ways: Mapping[str, Way], pictures: Mapping[str, Pictures]
    ) -> tuple[dict[str, Seen], dict[str, Likeness]]:
        """What is seen in each way's pictures, and how like the baseline's they are."""
        baseline = ways[BASELINE]
        exhibits = {}
        for name, way in ways.items():
            shots = [asdict(shot) for shot in way.shots]
            key = key_of(pictures=self._picture_key(way), shots=shots)
            pair = key_of(pictures=self._picture_key(baseline), other=key)
            exhibits[name] = Exhibit(
                pictures[name].files,
                tuple(shot.prompt.text for shot in way.shots),
                f"{key}.npz",
                pictures[BASELINE].files[: len(way.shots)],
                None if name == BASELINE else f"{pair}.json",
            )
        shelf = self.store.shelf(
            self.progress,
            "score",
            "scores",
            self._instruments_key,
            f"{len(baseline.shots)} pictures, {len(ways)} ways to draw them",
            [file for one in exhibits.values() for file in one.outputs()],
            lambda folder, advance: self.run(
                score_pictures,
                list(exhibits.values()),
                self.judging.instruments,
                folder,
                on_progress=advance,
            ),
        )
        seen = {name: Seen.load(shelf / one.seen) for name, one in exhibits.items()}
        likeness = {
            name: read_record(shelf / one.likeness, Likeness)
            for name, one in exhibits.items()
            if one.likeness
        }
        return seen, likeness

    @cached_property
    def _instruments_key(self) -> str:
        chosen = self.judging.instruments
        plugins = find_plugins(chosen.plugins)
        return key_of(
            scorer=chosen.scorer.hashes(),
            checker=chosen.checker,
            plugins=[[one.name, one.value, one.dist.version] for one in plugins if one.dist],
            fid_features=chosen.fid_features and _hashes(chosen.fid_features),
            lpips=chosen.lpips and _hashes(chosen.lpips),
            tools={name: version(name) for name in ("torch", "torchmetrics", "transformers")},
        )

    def _sides(self, ways: Mapping[str, Way], folders: Folders) -> tuple[Variant, Variant]:
        device = self.recipe.device
        return ways[BASELINE].variant(folders, device), ways[COMPRESSED].variant(folders, device)

    def _networks(self, ways: Mapping[str, Way], folders: Folders) -> tuple[Variant, Variant]:
        """Both sides drawing alike, to compare their networks call by call."""
        baseline, candidate = self._sides(ways, folders)
        return baseline, replace(candidate, settings=baseline.settings)

    def _networks_key(self, **inputs: object) -> str:
        precision, settings = self.recipe.execution_precision, asdict(self._settings)
        return self._key(BASELINE, COMPRESSED, precision=precision, settings=settings, **inputs)

    def _sqnr_shots(self, ways: Mapping[str, Way]) -> tuple[Shot, ...]:
        return ways[BASELINE].shots[: self.recipe.evaluate.sqnr_prompts]

    def _sqnr_key(self, ways: Mapping[str, Way]) -> str:
        shots = [asdict(shot) for shot in self._sqnr_shots(ways)]
        return self._networks_key(shots=shots)

    def sqnr(self, ways: Mapping[str, Way], folders: Folders) -> Sqnr:
        """How far the candidate's networks are from the baseline's, call by call."""
        shots = self._sqnr_shots(ways)
        return self.store.record(
            self.progress,
            "sqnr",
            self._sqnr_key(ways),
            f"error by timestep over {len(shots)} prompts",
            Sqnr,
            lambda folder, advance: self.run(
                measure_sqnr, *self._networks(ways, folders), shots, folder, on_progress=advance
            ),
            resumable=True,
        )

    def _layers_key(self, ways: Mapping[str, Way]) -> str:
        return self._networks_key(shot=asdict(ways[BASELINE].shots[0]))

    def _layer_errors(self, ways: Mapping[str, Way], folders: Folders) -> LayerErrors:
        """Of a call that the measurement of SQNR by timestep left."""
        measured = self.store.find("sqnr", self._sqnr_key(ways))
        if measured is None:
            raise ValueError("layers are compared after SQNR was measured")
        call = measured / MIDDLE_CALL
        return self.store.record(
            self.progress,
            "layers",
            self._layers_key(ways),
            "error of the UNet's layers",
            LayerErrors,
            lambda folder, advance: self.run(
                measure_layers, *self._networks(ways, folders), call, folder, on_progress=advance
            ),
        )

    def _performance_key(self, ways: Mapping[str, Way]) -> str:
        prompt = ways[BASELINE].shots[0].prompt.text
        both = [self._drawn_with(ways[side]) for side in (BASELINE, COMPRESSED)]
        return self._key(drawn=both, prompt=prompt, turns=self.recipe.evaluate.timed_images)

    def _performance(self, ways: Mapping[str, Way], folders: Folders) -> Performance:
        turns = self.recipe.evaluate.timed_images
        prompt = ways[BASELINE].shots[0].prompt.text
        measured = self.store.record(
            self.progress,
            "measure",
            self._performance_key(ways),
            "time and memory, sides in turn",
            Performance,
            lambda folder, advance: measure_performance(
                *self._sides(ways, folders), prompt, turns, folder, advance
            ),
            resumable=True,
        )
        if not self.recipe.evaluate.least_memory:
            return measured
        found = [
            replace(side, least_memory_bytes=self._least_memory(ways[name], folders, side))
            for name, side in ((BASELINE, measured.baseline), (COMPRESSED, measured.candidate))
        ]
        return replace(measured, baseline=found[0], candidate=found[1])

    def footprint(self, way: Way, folders: Folders, turn: int, beside: Sequence[Way]) -> Footprint:
        """Time and memory of one way to draw, in a process of its own.

        It is measured anew when the ways `beside` are others, for these are compared with it.
        """
        variant, prompt = way.variant(folders, self.recipe.device), way.shots[0].prompt.text
        return self.store.record(
            self.progress,
            "time",
            self._footprint_key(way, turn, beside),
            f"{way.title}, turn {turn + 1}",
            Footprint,
            lambda *_: measure_footprint(variant, prompt),
        )

    def has_footprint(self, way: Way, turn: int, beside: Sequence[Way]) -> bool:
        """Whether `footprint` would measure nothing."""
        return self.store.has("time", self._footprint_key(way, turn, beside))

    def _footprint_key(self, way: Way, turn: int, beside: Sequence[Way]) -> str:
        return self._key(
            **self._drawn_with(way),
            prompt=way.shots[0].prompt.text,
            turn=turn,
            beside=[asdict(one.settings) for one in beside],
        )

    def _least_memory(self, way: Way, folders: Folders, side: Side) -> int:
        variant, prompt = way.variant(folders, self.recipe.device), way.shots[0].prompt.text
        peak = int(side.peak_rss_bytes.high)
        return self.store.record(
            self.progress,
            "limit",
            self._key(**self._drawn_with(way), prompt=prompt),
            f"{way.title}: smallest memory that suffices",
            int,
            lambda _, advance: least_memory_bytes(variant, prompt, peak, advance),
        )


def _hashes(network: Path) -> list[str]:
    """Of a network's file, and of the weights beside an IR."""
    files = (network, network.with_suffix(".bin"))
    return [sha256_of(file) for file in files if file.is_file()]
