"""The evaluation half of a run: draws, scores and measures baseline and candidate, stage by stage.

The candidate is a finished pipeline folder; where it came from does not matter here.
"""

import os
import shutil
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

from sdcompress.evaluate import (
    BASELINE_PRECISION,
    Contest,
    draw_side,
    measure_performance,
    measure_sqnr,
    score_pairs,
    summarize,
)
from sdcompress.evaluate.pictures import Pictures
from sdcompress.evaluate.records import Evaluation, Performance, Scores, UnetSqnr
from sdcompress.line import Judging, Line
from sdcompress.processor import processor_brand, processor_flags
from sdcompress.progress import Advance
from sdcompress.prompts import Prompt
from sdcompress.source import sha256_of
from sdcompress.store import key_of

SAMPLES = "samples"


@dataclass(frozen=True)
class Trial:
    """Baseline against candidate, on the evaluation section of the line's recipe."""

    line: Line
    judging: Judging
    candidate: Path
    candidate_key: str

    @cached_property
    def prompts(self) -> tuple[Prompt, ...]:
        """The evaluation prompts, each with the recipe's negative prompt unless it has its own."""
        usual = self.line.recipe.evaluate.negative_prompt
        return tuple(
            replace(prompt, negative=prompt.negative or usual) for prompt in self.judging.prompts
        )

    @cached_property
    def contest(self) -> Contest:
        """The two sides. The model is converted for it if it has not been."""
        return Contest(
            baseline=self.line.converted,
            candidate=self.candidate,
            device=self.line.recipe.device,
            settings=self.line.settings,
            prompts=self.prompts,
            seed=self.line.recipe.evaluate.seed,
            scorer=self.judging.scorer,
        )

    def evaluated(self, folder: Path) -> Evaluation:
        """Runs what is not in the store yet and copies the pictures to `folder`/samples."""
        pairs = (self._pictures("baseline"), self._pictures("compressed"))
        scores = self._scores(*pairs)
        sqnr = self._sqnr()
        performance = self._performance()
        for side, pictures in zip(("baseline", "compressed"), pairs, strict=True):
            target = folder / SAMPLES / side
            target.mkdir(parents=True)
            for file in pictures.files:
                shutil.copyfile(file, target / file.name)
        samples = tuple(
            replace(
                sample,
                baseline=folder / SAMPLES / "baseline" / sample.baseline.name,
                candidate=folder / SAMPLES / "compressed" / sample.candidate.name,
            )
            for sample in scores.samples
        )
        return Evaluation(
            quality=summarize(scores.clip, samples, sqnr),
            performance=performance,
            samples=samples,
            execution_precisions={
                "baseline": pairs[0].execution_precisions,
                "compressed": pairs[1].execution_precisions,
            },
        )

    def _key(self, *, side: str | None, **inputs: object) -> str:
        """Hashes the contest, with both models or only the one of `side`, and further inputs."""
        models = {"baseline": self.line.converted_key, "compressed": self.candidate_key}
        return key_of(
            models=models if side is None else {side: models[side]},
            device=self.line.recipe.device,
            settings=asdict(self.line.settings),
            prompts=[asdict(prompt) for prompt in self.prompts],
            seed=self.line.recipe.evaluate.seed,
            openvino=version("openvino"),
            processor=[processor_brand(), os.cpu_count(), *sorted(processor_flags())],
            **inputs,
        )

    def _pictures(self, side: str) -> Pictures:
        contest = self.contest
        is_candidate = side == "compressed"

        def build(folder: Path, advance: Advance) -> None:
            self.line.run(draw_side, contest, is_candidate, folder, on_progress=advance)

        detail = f"{len(contest.prompts)} {side} pictures"
        key = self._key(side=side)
        drawn = self.line.store.stage(
            self.line.progress, "draw", key, detail, build, resumable=True
        )
        return Pictures.load(drawn)

    def finished(self) -> set[str]:
        """The names of the long stages that need not be run."""
        keys = {
            "draw": [self._key(side=side) for side in ("baseline", "compressed")],
            "sqnr": [self._sqnr_key],
            "measure": [self._performance_key],
        }
        store = self.line.store
        return {name for name, needed in keys.items() if all(store.has(name, k) for k in needed)}

    @property
    def _sqnr_prompts(self) -> int:
        return min(self.line.recipe.evaluate.sqnr_prompts, len(self.prompts))

    @property
    def _sqnr_key(self) -> str:
        return self._key(side=None, sqnr_prompts=self._sqnr_prompts)

    @property
    def _performance_key(self) -> str:
        images = self.line.recipe.evaluate.timed_images
        return self._key(side=None, timed_images=images, baseline_precision=BASELINE_PRECISION)

    def _scores(self, baseline: Pictures, candidate: Pictures) -> Scores:
        files = (file for file in self.contest.scorer.folder.iterdir() if file.is_file())
        scorer = {file.name: sha256_of(file) for file in files}
        tools = {name: version(name) for name in ("torch", "torchmetrics", "transformers")}
        return self.line.store.record(
            self.line.progress,
            "score",
            self._key(side=None, scorer=scorer, tools=tools),
            "CLIP score, PSNR, SSIM",
            Scores,
            lambda _, advance: self.line.run(
                score_pairs, self.contest, baseline, candidate, on_progress=advance
            ),
        )

    def _sqnr(self) -> UnetSqnr:
        count = self._sqnr_prompts
        return self.line.store.record(
            self.line.progress,
            "sqnr",
            self._sqnr_key,
            f"UNet output error over {count} prompts",
            UnetSqnr,
            lambda folder, advance: self.line.run(
                measure_sqnr, self.contest, count, folder, on_progress=advance
            ),
            resumable=True,
        )

    def _performance(self) -> Performance:
        images = self.line.recipe.evaluate.timed_images
        return self.line.store.record(
            self.line.progress,
            "measure",
            self._performance_key,
            "time and memory, sides in turn",
            Performance,
            lambda folder, advance: measure_performance(self.contest, images, folder, advance),
            resumable=True,
        )
