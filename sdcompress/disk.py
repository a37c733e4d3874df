"""How much disk a run takes, from the sizes of a model's parts: its store and its result."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from sdcompress.architecture import Architecture
from sdcompress.methods import (
    COMPONENTS,
    Fp16,
    Int4Weights,
    Int8Weights,
    Method,
    made_for,
    most_of,
)
from sdcompress.recipe import Recipe

_STATISTIC_BYTES = 11.1  # an item's statistics, a channel that a layer reads or returns
BESIDE_UNET = tuple(component for component in COMPONENTS if component != "unet")


@dataclass(frozen=True)
class DiskUse:
    """What a recipe's run on a model writes. `skipped` are stages that write nothing."""

    recipe: Recipe
    model: Architecture

    def run_bytes(self, skipped: Collection[str]) -> float:
        """IR, statistics, and the compressed parts twice: in the store and as the result."""
        total = self._baseline_bytes(skipped) + self._statistics_bytes(
            skipped, [self.recipe.compress.unet]
        )
        if "compress" not in skipped:
            total += self._made_bytes(COMPONENTS)
        if "bundle" not in skipped:
            total += self._copied_bytes(COMPONENTS)
        return total

    def search_bytes(self, skipped: Collection[str]) -> float:
        """The same with the UNet by every method and all mixtures, and one copy of a pipeline.

        What a candidate is drawn from is gone before the next is copied, and before the bundle is.
        """
        search = self.recipe.search
        methods = made_for(*search.variants.values(), self.recipe.compress.unet)
        mixture = 2.0 * self.model.parameters_of("unet")  # a careful one is nearly all in 16 bits
        total = self._baseline_bytes(skipped) + self._statistics_bytes(skipped, methods)
        if "compress" not in skipped:
            total += sum(self._packed_bytes("unet", one) for one in methods)
            total += search.candidates * mixture + self._made_bytes(BESIDE_UNET)
        if not {"draw", "bundle"} <= set(skipped):
            total += mixture + self._copied_bytes(BESIDE_UNET)
        return total

    def converted_bytes(self, component: str) -> float:
        """The size of a converted component's .bin."""
        part = self.model.part_of(component)
        as_fp32 = self.recipe.convert.weights == "fp32"
        each = 4.0 if as_fp32 else part.stored_bytes / part.parameters
        return each * self.model.parameters_of(component)

    def _baseline_bytes(self, skipped: Collection[str]) -> float:
        return 0.0 if "convert" in skipped else sum(map(self.converted_bytes, COMPONENTS))

    def _statistics_bytes(self, skipped: Collection[str], methods: Iterable[Method]) -> float:
        """Of the UNet; those of the other components are small."""
        if "ranges" in skipped or not any(one.needs_statistics for one in methods):
            return 0.0
        return self.recipe.calibrate.samples * _STATISTIC_BYTES * self.model.unet_channels

    def _made_bytes(self, components: Iterable[str]) -> float:
        """What compression leaves in the store."""
        methods = self.recipe.compress
        return sum(
            self._packed_bytes(component, one)
            for component in components
            for one in made_for(methods.method_of(component))
        )

    def _copied_bytes(self, components: Iterable[str]) -> float:
        methods = self.recipe.compress
        return sum(self._packed_bytes(one, methods.method_of(one)) for one in components)

    def _packed_bytes(self, component: str, method: Method) -> float:
        """The size of a component's .bin as a method makes it."""
        usual = most_of(method)
        wide = isinstance(usual, Fp16)
        if isinstance(usual, Int8Weights | Int4Weights) and component != "text_encoder":
            wide = not usual.convolutions  # which have most of the weights
        return (2.0 if wide else 1.0) * self.model.parameters_of(component)
