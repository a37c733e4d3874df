"""What is done to save memory, what each phase of drawing then takes, and what a limit demands."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdcompress.runtime.errors import InputError
from sdcompress.runtime.settings import Settings
from sdcompress.runtime.tiling import SMALLEST

if TYPE_CHECKING:
    from sdcompress.runtime.pipeline import Pipeline

TOGETHER = "all parts"  # the only phase when all are loaded
# Fitted to Stable Diffusion 2.1, W8A8 and 16-bit; docs/performance.md has the measurements.
_PROCESS_BYTES = 0.14e9  # the interpreter with the runtime's packages and the tokenizer
_GRAPH = 90.0  # a compiled graph against its description in the file
# Outputs of layers that are held at the same time, against the largest.
_WORKING = {"text_encoder": 0.0, "unet": 2.6, "vae_decoder": 3.1}
_TILES = (48, 32, 24, SMALLEST)  # latent cells a side


@dataclass(frozen=True)
class Economy:
    """What is done to save memory while drawing.

    `in_turn` has the parts loaded, used and given back one after the other. `branches_apart` asks
    the UNet for one branch of guidance after the other. `vae_tile` decodes in tiles of so many
    latent cells a side; None decodes the whole picture at once.
    """

    in_turn: bool = True
    branches_apart: bool = False
    vae_tile: int | None = None

    def describe(self) -> str:
        """In words, for a report."""
        told = ["parts in turn" if self.in_turn else "all parts loaded"]
        told.append("guidance branches " + ("in turn" if self.branches_apart else "in one batch"))
        if self.vae_tile is None:
            told.append("pictures decoded whole")
        else:
            told.append(f"pictures decoded in tiles of {self.vae_tile} x {self.vae_tile} cells")
        return ", ".join(told)


def choose_economy(pipeline: "Pipeline", settings: Settings, batch: int, limit: int) -> Economy:
    """The quickest way to draw that is expected to stay below `limit` bytes.

    Raises InputError, with what the thriftiest takes, when none is.
    """
    choices = [Economy(), Economy(branches_apart=True)]
    choices += [Economy(vae_tile=tile) for tile in _TILES]
    choices += [Economy(branches_apart=True, vae_tile=tile) for tile in _TILES]
    for economy in choices:
        expected = expected_peaks(pipeline, settings, batch, economy)
        if max(expected.values()) <= limit:
            return economy
    needed = ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in expected.items())
    raise InputError(
        f"--max-memory: {limit / 1e9:.2f} GB do not suffice; with all that saves memory these are "
        f"needed: {needed}. Draw a smaller picture, or compress the model further."
    )


def expected_peaks(
    pipeline: "Pipeline", settings: Settings, batch: int, economy: Economy
) -> dict[str, float]:
    """Resident bytes that each phase is expected to take at most."""
    needs = {
        name: one.weight_bytes
        + _GRAPH * one.graph_bytes
        + _WORKING[name] * one.largest_output_bytes
        for name, one in pipeline.contents(settings, batch, economy).items()
    }
    if economy.in_turn:
        return {name: _PROCESS_BYTES + need for name, need in needs.items()}
    return {TOGETHER: _PROCESS_BYTES + sum(needs.values())}


def report(
    economy: Economy, expected: Mapping[str, float], measured: Mapping[str, int]
) -> Iterator[str]:
    """Yields the lines of a table; phases that were not expected, or not measured, have a dash."""
    yield f"memory: {economy.describe()}"
    yield f"{'phase':<14} {'expected':>10} {'measured':>10}"
    for phase in dict.fromkeys([*expected, *measured]):
        sizes = (
            f"{one[phase] / 1e9:.2f} GB" if phase in one else "-" for one in (expected, measured)
        )
        yield " ".join([f"{phase:<14}", *(f"{size:>10}" for size in sizes)])
