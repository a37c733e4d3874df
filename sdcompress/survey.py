"""What a search measures before it chooses: groups of layers, their errors and their costs."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.metadata import version
from math import ceil, floor, log10
from pathlib import Path

from sdcompress.calibrate import ModelInputs
from sdcompress.errors import InputError
from sdcompress.ir import IR_NAME, ir_bytes
from sdcompress.judging import Judging
from sdcompress.line import Line
from sdcompress.methods import PLAIN
from sdcompress.processor import processor_record
from sdcompress.recipe import Recipe
from sdcompress.runtime import Settings
from sdcompress.runtime.layout import read_layout
from sdcompress.runtime.schedulers.config import read_scheduler_config
from sdcompress.runtime.schedulers.levels import noise_levels
from sdcompress.search.calls import Call, Guidance, pick_calls
from sdcompress.search.cost import ModelCost, measure_costs
from sdcompress.search.groups import Group, group_layers
from sdcompress.search.sensitivity import (
    OVERFLOWED,
    Experiment,
    Sensitivity,
    measure_sensitivity,
)
from sdcompress.search.solver import Limits, Option
from sdcompress.search.switchboard import compressed_layers
from sdcompress.store import key_of
from sdcompress.trial import shots_of


@dataclass(frozen=True)
class Survey:
    """The UNet of one line as each variant; `judging` has the prompts of short trajectories."""

    recipe: Recipe
    line: Line
    judging: Judging

    @cached_property
    def variants(self) -> dict[str, Path]:
        """The folders of the UNet's IR, compressed whole by each variant."""
        made = self.recipe.search.variants.items()
        return {name: self.line.compressed_by("unet", one).folder for name, one in made}

    @property
    def baseline(self) -> Path:
        """The IR of the UNet in 16 bits."""
        return self.line.converted / "unet" / IR_NAME

    @cached_property
    def _layers(self) -> dict[str, set[str]]:
        """What can be compressed, and which variants do. Raises InputError for one that is idle."""
        found = compressed_layers(self.baseline, self.variants)
        idle = self.variants.keys() - set().union(*found.values())
        if idle:
            raise InputError(
                f"recipe {self.recipe.name}: search.variants.{min(idle)} changes no layer of the "
                "UNet: leave it out, or ignore fewer layers"
            )
        return found

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """Of all layers that any variant changes."""
        return group_layers(self._layers, self.recipe.search.grouping)

    @cached_property
    def _calls(self) -> tuple[Call, ...]:
        inputs = ModelInputs(self.line.calibrated, "unet", self.recipe.sampling.branches)
        layout = read_layout(self.line.converted)
        scheduler = self.recipe.sampling.scheduler
        config = read_scheduler_config(layout.scheduler, scheduler, str(layout.scheduler_path))
        return pick_calls(inputs, self.recipe.search.timesteps, noise_levels(config))

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: value.shape for name, value in self._calls[0].inputs.items()}

    @cached_property
    def sensitivities(self) -> Mapping[str, Sensitivity]:
        """What each variant does to each group that it changes."""
        return {name: self._sensitivity(name) for name in self.variants}

    def _experiment(self, variant: str) -> Experiment:
        options, recipe = self.recipe.search, self.recipe
        settings = replace(Settings(**recipe.baseline_settings), steps=options.trajectory_steps)
        prediction_type = read_layout(self.line.converted).prediction_type
        return Experiment(
            baseline=self.line.converted,
            variant=self.variants[variant],
            device=recipe.device,
            groups=tuple(one for one in self.groups if variant in self._changing(one)),
            calls=self._calls,
            guidance=Guidance(settings.guidance_scale, prediction_type),
            shots=shots_of(self.judging.prompts, recipe.evaluate)[: options.trajectories],
            settings=settings,
            scorer=self.judging.instruments.scorer,
            confirmed=options.confirmed,
            checked=self.judging.instruments.checker,
            any_size=recipe.convert.height is None,
        )

    def _sensitivity(self, variant: str) -> Sensitivity:
        line, experiment = self.line, self._experiment(variant)
        method = self.recipe.search.variants[variant]
        key = key_of(
            models=[line.converted_key, line.key_of_method("unet", method)],
            calls=[line.calibrated_key, self.recipe.search.timesteps],
            groups=[asdict(one) for one in experiment.groups],
            confirmed=experiment.confirmed,
            checked=experiment.checked,
            settings=asdict(experiment.settings),
            shots=[asdict(one) for one in experiment.shots],
            scorer=experiment.scorer.hashes(),
            device=experiment.device,
            processor=processor_record(),
            tools={name: version(name) for name in ("openvino", "torch", "transformers")},
        )
        return line.store.record(
            line.progress,
            "sensitivity",
            key,
            f"{variant}: {len(experiment.groups)} groups at {len(self._calls)} timesteps",
            Sensitivity,
            lambda folder, advance: line.run(
                measure_sensitivity, experiment, folder, on_progress=advance
            ),
            resumable=True,
        )

    @cached_property
    def costs(self) -> Mapping[str, ModelCost]:
        """Of the UNet in 16 bits and as each variant."""
        models = {name: folder / IR_NAME for name, folder in self.variants.items()}
        costs = self.cost_of(models, "of every variant")
        wanted = self.recipe.search
        by_memory = wanted.objective == "memory" or wanted.memory_max is not None
        if by_memory and not any(one.executed_bytes for one in costs[PLAIN].groups):
            raise InputError(
                f"recipe {self.recipe.name}: {self.recipe.device} does not tell how it keeps "
                "weights, so search cannot go by memory: go by size"
            )
        return costs

    def cost_of(self, models: Mapping[str, Path], detail: str) -> dict[str, ModelCost]:
        """Of some IR files of the UNet, and of that in 16 bits, in turn."""
        models = {PLAIN: self.baseline} | dict(models)
        key = key_of(
            models={name: xml.parent.parent.name for name, xml in models.items()},
            groups=[asdict(one) for one in self.groups],
            shapes={name: list(shape) for name, shape in self._shapes.items()},
            device=self.recipe.device,
            execution_precision=self.recipe.execution_precision,
            processor=processor_record(),
            openvino=version("openvino"),
        )
        return self.line.store.record(
            self.line.progress,
            "cost",
            key,
            f"time and bytes {detail}",
            dict[str, ModelCost],
            lambda folder, advance: self.line.run(
                measure_costs,
                models,
                self.groups,
                self._shapes,
                self.recipe.device,
                self.recipe.execution_precision,
                folder,
                on_progress=advance,
            ),
            resumable=True,
        )

    @cached_property
    def exact_options(self) -> tuple[Option, ...]:
        """Every group in 16 bits and as each variant that changes it, as if none erred."""
        return tuple(
            Option(
                group.name,
                variant,
                0.0,
                0.0,
                cost.seconds,
                cost.stored_bytes,
                cost.executed_bytes,
            )
            for group in self.groups
            for variant in (PLAIN, *self._changing(group))
            if (cost := self.costs[variant].of(group.name))
        )

    def _changing(self, group: Group) -> list[str]:
        """The variants that change any of a group's layers."""
        found = set().union(*(self._layers[layer] for layer in group.layers))
        return [variant for variant in self.variants if variant in found]

    @cached_property
    def options(self) -> tuple[Option, ...]:
        """The same with the errors to expect, without what overflows."""
        return tuple(self._options())

    def _options(self) -> Iterator[Option]:
        for one in self.exact_options:
            if one.variant == PLAIN:
                yield one
                continue
            noise, content = self.sensitivities[one.variant].expected(one.group)
            if noise < OVERFLOWED:
                yield replace(one, noise=noise, content=content)

    def limits(self) -> Limits:
        """What the limits of the search and the budget of the file leave to the groups."""
        wanted, ratio = self.recipe.search, self.recipe.budgets.unet_bytes_ratio
        files = [wanted.size_bytes, ratio and ratio * self.file_bytes]
        least = min((one for one in files if one is not None), default=None)
        return Limits(
            seconds=wanted.latency_ratio_max and self._seconds_allowed(wanted.latency_ratio_max),
            stored_bytes=least and max(0.0, least - self._other_bytes()),
            executed_bytes=wanted.memory_bytes
            and max(0.0, wanted.memory_bytes - self._other_memory()),
        )

    def reachable(self, least: Mapping[str, float]) -> Iterator[str]:
        """Yields each limit in the recipe's words, and what can be kept to instead.

        `least` is what all groups together take at least, by the field of `Option`.
        """
        wanted, ratio = self.recipe.search, self.recipe.budgets.unet_bytes_ratio
        if "seconds" in least and wanted.latency_ratio_max is not None:
            plain = self.costs[PLAIN]
            fixed = plain.seconds - sum(one.seconds for one in plain.groups)
            share = (fixed + least["seconds"]) / plain.seconds
            yield f"search.latency_ratio_max {wanted.latency_ratio_max:g}: {_up(share)} at least"
        if "stored_bytes" in least:
            file = self._other_bytes() + least["stored_bytes"]
            if wanted.size_max is not None:
                yield f"search.size_max {wanted.size_max}: {_up(file / 1e6)}MB at least"
            if ratio is not None:
                yield f"budgets.unet_bytes_ratio {ratio:g}: {_up(file / self.file_bytes)} at least"
        if "executed_bytes" in least:
            memory = self._other_memory() + least["executed_bytes"]
            yield f"search.memory_max {wanted.memory_max}: {_up(memory / 1e6)}MB at least"

    @property
    def file_bytes(self) -> int:
        """The size of the baseline's UNet on disk."""
        return ir_bytes(self.baseline.parent)

    def _other_memory(self) -> float:
        """What the device keeps of weights that are in no group."""
        plain = self.costs[PLAIN]
        return plain.executed_bytes - sum(one.executed_bytes for one in plain.groups)

    def _seconds_allowed(self, ratio: float) -> float:
        """What groups may take so that a whole call takes so much of one in 16 bits."""
        plain = self.costs[PLAIN]
        grouped = sum(one.seconds for one in plain.groups)
        return max(0.0, ratio * plain.seconds - (plain.seconds - grouped))

    def _other_bytes(self) -> float:
        """What a compressed UNet's files hold beside the weights of its groups, at most."""
        return max(
            ir_bytes(folder) - sum(one.stored_bytes for one in self.costs[name].groups)
            for name, folder in self.variants.items()
        )


def _up(value: float) -> str:
    """Three digits, not less than the value."""
    unit = 10.0 ** (floor(log10(value)) - 2) if value > 0.0 else 1.0
    return f"{ceil(value / unit) * unit:.3g}"
