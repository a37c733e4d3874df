"""What is done to save memory, what each phase of drawing then takes, and what a limit demands."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdcompress.runtime.content import Content
from sdcompress.runtime.errors import InputError
from sdcompress.runtime.settings import Settings
from sdcompress.runtime.tiling import SMALLEST

if TYPE_CHECKING:
    from sdcompress.runtime.pipeline import Pipeline

ALL_PARTS = "all parts"  # the only phase when all are loaded
# How the UNet is asked for the two branches of guidance.
TOGETHER, SIDE_BY_SIDE, IN_TURN = BRANCHES = ("in one batch", "side by side", "in turn")
# Fitted to Stable Diffusion 2.1, W8A8 and 16-bit; docs/performance.md has the measurements.
_PROCESS_BYTES = 0.14e9  # the interpreter with the runtime's packages and the tokenizer
_GRAPH = 90.0  # a compiled graph against its description in the file
_GAPS = 0.12  # of what the text encoder held, where the UNet came into memory beside it
# Outputs of layers that are held at the same time, against the largest.
_WORKING = {"text_encoder": 0.0, "unet": 3.5, "vae_decoder": 3.4, "tiny_decoder": 3.7}
_TILES = (48, 32, 24, SMALLEST)  # latent cells a side


@dataclass(frozen=True)
class Economy:
    """How drawing deals with time and memory.

    `branches` is one of BRANCHES; None is what is quickest. `vae_tile` decodes in tiles of so many
    latent cells a side; None decodes the whole picture at once. `ahead` compiles the UNet while
    prompts are encoded, where parts are used in turn.
    """

    branches: str | None = None
    vae_tile: int | None = None
    ahead: bool = True

    def __post_init__(self) -> None:
        if self.branches not in (None, *BRANCHES):
            raise InputError(
                f"branches is {self.branches!r}; it must be one of: {', '.join(BRANCHES)}."
            )
        if self.vae_tile is not None and self.vae_tile < SMALLEST:
            raise InputError(
                f"Tiles of {self.vae_tile} latent cells are too small; take {SMALLEST} or more."
            )

    def describe(self) -> str:
        """In words, for a report."""
        tile = self.vae_tile
        told = (
            "UNet compiled beside the text encoder" if self.ahead else "",
            f"guidance branches {self.branches or 'as is quickest'}",
            f"pictures decoded in tiles of {tile} x {tile} cells" if tile else "decoded whole",
        )
        return ", ".join(one for one in told if one)


def choose_economy(pipeline: "Pipeline", settings: Settings, batch: int, limit: int) -> Economy:
    """The quickest way to draw with the parts in turn that is expected to stay below `limit` bytes.

    Raises InputError, with what the thriftiest takes, when none is, and where nothing is foreseen.
    """
    least: dict[str, float] = {}
    for economy in _choices(pipeline.economy.branches):
        expected = expected_peaks(pipeline, settings, batch, economy)
        if expected is None:
            continue  # the files were made for another shape
        if max(expected.values()) <= limit:
            return economy
        least = min(least or expected, expected, key=lambda peaks: max(peaks.values()))
    if not least:
        raise InputError(
            f"What this model takes on {pipeline.device} is not foreseen: a limit is for the CPU "
            "and for shapes that the model's files allow."
        )
    needed = ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in least.items())
    raise InputError(
        f"A limit of {limit / 1e9:.2f} GB does not suffice; with all that saves memory these are "
        f"needed: {needed}. Draw smaller pictures, or fewer in a batch, or compress the model "
        "further."
    )


def _choices(branches: str | None) -> Iterator[Economy]:
    """The quickest first, with the branches asked for as they are, if that can be.

    Side by side, the usual way, takes more than one batch of both, and that more than in turn.
    """
    for tile in (None, *_TILES):
        for one in dict.fromkeys((branches, TOGETHER, IN_TURN)):
            yield from (Economy(one, tile, ahead) for ahead in (True, False))


def expected_peaks(
    pipeline: "Pipeline",
    settings: Settings,
    batch: int,
    economy: Economy,
    *,
    in_turn: bool = True,
    streams: int = 1,
) -> dict[str, float] | None:
    """Resident bytes that each phase of text-to-image is expected to take at most, on the CPU.

    None for other devices, whose memory is not this process's, and where the model's files do not
    allow the shapes that the economy asks for.
    """
    if pipeline.device != "CPU":
        return None
    contents = pipeline.contents(settings, batch, economy)
    if contents is None:
        return None
    needs = {
        name: _held(one) + streams * (_WORKING[name] * one.largest_output_bytes + one.scores_bytes)
        for name, one in contents.items()
    }
    if in_turn:
        if economy.ahead:  # at most: compiling may not be done by then
            needs["text_encoder"] += _held(contents["unet"])
            needs["unet"] += _GAPS * _held(contents["text_encoder"])
        return {name: _PROCESS_BYTES + need for name, need in needs.items()}
    return {ALL_PARTS: _PROCESS_BYTES + sum(needs.values())}


def _held(content: Content) -> float:
    """Bytes of what is compiled, before it works."""
    return content.kept_bytes + _GRAPH * content.graph_bytes


def report(title: str, expected: Mapping[str, float], measured: Mapping[str, int]) -> Iterator[str]:
    """Yields the lines of a table; phases that were not expected, or not measured, have a dash."""
    yield f"memory: {title}"
    yield f"{'phase':<14} {'expected':>10} {'measured':>10}"
    for phase in dict.fromkeys([*expected, *measured]):
        sizes = (
            f"{one[phase] / 1e9:.2f} GB" if phase in one else "-" for one in (expected, measured)
        )
        yield " ".join([f"{phase:<14}", *(f"{size:>10}" for size in sizes)])
