"""What a search finds, against hybrid and plain W8A8: ``make bench-search``.

Hybrid and W8A8 of the whole UNet are made and asked what the float32 one was asked on its way to
pictures of prompts that nothing was calibrated on. A budget a little above the better one's worst
timestep is what both fail; a search then looks for the quickest mixture that passes it. All are
timed in turns, with performance counters on: a time is the quickest, a ratio the median of
the turns', with its range. Prints one Markdown table, and exits with 1 when what was found is not
1.15 times as fast as hybrid, or no closer to the float32 one. A quarter of an hour on the demo;
hours with ``--model FOLDER`` (``make bench-search MODEL=FOLDER``) for a full-size model such as
that of ``make_sd21.py``, of whose pictures few are drawn. A killed run goes on where it was.
"""

import argparse
from pathlib import Path

from unet_quality import (
    TURNS,
    Array,
    as_ratio,
    call_seconds,
    opened_line,
    ratio,
    recipe_for,
    sqnr_by_step,
    traced,
)

from sdcompress.methods import PLAIN, Hybrid, Int8, Method
from sdcompress.processor import describe_machine
from sdcompress.progress import TerminalProgress
from sdcompress.recipe import Recipe
from sdcompress.searching import search

# Pictures of a stand-in show nothing, so few are drawn.
FEW = ("search.prompts=2", "evaluate.yardstick_prompts=0")
MARGIN_DB = 0.3
WANTED = 1.15
WHOLE: dict[str, Method] = {"hybrid": Hybrid(method="hybrid"), "W8A8": Int8(method="int8")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo", help="demo or a diffusers folder")
    parser.add_argument("--work", type=Path, default=Path("build/search"))
    parser.add_argument("--turns", type=int, default=TURNS, help="in which all are timed")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="changes",
        metavar="KEY=VALUE",
        help="of the recipe",
    )
    options = parser.parse_args()
    changes = (*(() if options.model == "demo" else FEW), *options.changes)
    recipe = recipe_for(options.model, changes)
    usual: dict[str, Method] = {"W8A8 but for both ends": recipe.compress.unet}
    sqnr = _sqnr(recipe, WHOLE, options.work)
    limit = round(max(float(one.min()) for one in sqnr.values()) + MARGIN_DB, 1)
    print(f"both fail where {limit} dB are asked for at every timestep", flush=True)
    strict = recipe_for(options.model, (*changes, f"budgets.unet_sqnr_min_db={limit}"))
    output = options.work.resolve() / "searched"
    found = search(strict, output, progress=TerminalProgress())
    same = [name for name, one in usual.items() if one == found.chosen.method]
    others = usual if same else usual | {"found": found.chosen.method}
    winner = same[0] if same else "found"
    sqnr |= _sqnr(recipe, others, options.work)
    seconds = _seconds(recipe, WHOLE | others, options.work, options.turns)
    asked = f"{recipe.evaluate.sqnr_prompts} prompts, {recipe.sampling.steps} steps"
    precision = recipe.execution_precision or "the device's own precision"
    print(f"\n{describe_machine()}, executing in {precision}; {asked}\n")
    print("| UNet | a call | by 16 bits | by hybrid | SQNR, worst timestep | mean | budget |")
    print("|---|---|---|---|---|---|---|")
    for name, turns in seconds.items():
        ratios = [as_ratio(ratio(seconds, name, one)) for one in (PLAIN, "hybrid")]
        row = [name, f"{min(turns) * 1e3:.1f} ms", *ratios, *_quality(sqnr.get(name), limit)]
        print(f"| {' | '.join(row)} |")
    gain = ratio(seconds, "hybrid", winner)
    print(f"\nfound: {winner} ({found.chosen.name}); hybrid takes {as_ratio(gain)} of its time")
    worse = sqnr[winner].min() < limit or sqnr[winner].mean() < sqnr["hybrid"].mean()
    raise SystemExit(bool(worse or gain[0] < WANTED))


def _quality(by_step: Array | None, limit: float) -> list[str]:
    if by_step is None:
        return ["", "", ""]
    verdict = "kept" if by_step.min() >= limit else "broken"
    return [f"{by_step.min():.1f} dB", f"{by_step.mean():.1f} dB", verdict]


def _sqnr(recipe: Recipe, methods: dict[str, Method], work: Path) -> dict[str, Array]:
    """SQNR in dB of each UNet's answers at each step."""
    with opened_line(recipe, work) as line:
        traces = traced(line)
        return {
            name: sqnr_by_step(line, line.compressed_by("unet", one).folder, traces)
            for name, one in methods.items()
        }


def _seconds(
    recipe: Recipe, methods: dict[str, Method], work: Path, turns: int
) -> dict[str, list[float]]:
    """What a call takes in 16 bits and by each method, in turn."""
    with opened_line(recipe, work) as line:
        unets = {name: line.compressed_by("unet", one).folder for name, one in methods.items()}
        return call_seconds(line, {PLAIN: line.converted / "unet"} | unets, turns)


if __name__ == "__main__":
    main()
