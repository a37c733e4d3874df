"""What better calibration gains: ``make bench-calibration``.

The UNet is quantized once with each option and asked what the float32 one was asked on its own way
to pictures of prompts that nothing was calibrated on. Prints SQNR of its answers in dB, over all
calls and at both ends of the trajectory, as one Markdown table, and what splitting layers does to
the time of a call. About fifteen minutes on the demo; an hour with ``--model FOLDER`` (``make
bench-calibration MODEL=FOLDER``) for a full-size one such as that of ``make_sd21.py``. There, rows
that take hours (other prompts, accurate bias correction) or 16 GB (what NNCF collects itself) are
only run when ``--only`` has their name.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unet_quality import (
    as_ratio,
    call_seconds,
    opened_line,
    ratio,
    recipe_for,
    sqnr_by_step,
    traced,
)

from sdcompress.processor import describe_machine
from sdcompress.recipe import Recipe
from sdcompress.splitting import FIRST

ENDS = [".*conv_in.*", ".*conv_out.*"]
TEXT = r".*attn2\.to_[kv].*"


@dataclass(frozen=True)
class Trial:
    """What differs from the first row."""

    name: str
    unet: dict[str, Any]
    sections: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    costly: bool = False
    demo_only: bool = False


def _w8a8(**options: Any) -> dict[str, Any]:
    ignored = options.pop("ignored", ENDS)
    return {"method": "int8", "ignored": {"patterns": ignored}, **options}


TRIALS = (
    Trial("as `unet_int8` and `sd21_base_int8` do it", _w8a8()),
    *(Trial(f"as many inputs, of {count} prompts", _w8a8(), {"calibrate": {"prompts": count}},
            costly=True) for count in (8, 16, 64, 128)),
    *(Trial(f"recorded in {count} steps", _w8a8(), {"sampling": {"steps": count}}, demo_only=True)
      for count in (8, 12)),
    *(Trial(f"recorded with cache_interval {count}", _w8a8(),
            {"calibrate": {"cache_interval": count}}) for count in (3, 5)),
    Trial("both ends of the UNet in 8 bits, too", _w8a8(ignored=[])),
    Trial("SmoothQuant 0.8", _w8a8(smooth_quant_alpha=0.8)),
    Trial("SmoothQuant 0.5", _w8a8(smooth_quant_alpha=0.5)),
    Trial("no SmoothQuant", _w8a8(smooth_quant_alpha=None)),
    Trial("symmetric activations", _w8a8(preset="performance")),
    Trial("no bias correction", _w8a8(bias_correction="none")),
    Trial("bias correction: accurate", _w8a8(bias_correction="accurate"), costly=True),
    *(Trial(f"overflow_fix: {setting}", _w8a8(overflow_fix=setting), demo_only=True)
      for setting in ("enable", "disable")),
    Trial("ranges: median", _w8a8(ranges="median")),
    Trial("ranges: widest", _w8a8(ranges="widest")),
    Trial("ranges: narrowest_step", _w8a8(ranges="narrowest_step")),
    Trial("ranges: percentile", _w8a8(ranges="percentile"), costly=True),
    Trial("ranges: mse", _w8a8(ranges="mse"), costly=True),
    Trial("text keys and values in 16 bits", _w8a8(ignored=[*ENDS, TEXT])),
    Trial("text's first token apart, in 16 bits",
          _w8a8(ignored=[*ENDS, f".*{FIRST}"]), {"convert": {"split_first_token": True}}),
    Trial("skip connections apart", _w8a8(), {"convert": {"split_skips": True}}),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo", help="demo or a diffusers folder")
    parser.add_argument("--work", type=Path, default=Path("build/search"))
    parser.add_argument("--only", action="append", help="a row, or all that contain this")
    options = parser.parse_args()
    # Inputs of all rows but those of the cache are recorded with the whole UNet at every call.
    recipe = recipe_for(options.model, ("calibrate.cache_interval=1",))
    chosen = [
        one
        for one in TRIALS
        if (not options.only or any(text in one.name for text in options.only))
        and (options.model == "demo" or not one.demo_only)
        and (options.model == "demo" or not one.costly or one.name in (options.only or ()))
    ]
    asked = f"{recipe.evaluate.sqnr_prompts} prompts, {recipe.sampling.steps} steps"
    print(f"{describe_machine()}; {asked}\n")
    print("| option | all calls | the first | the last |")
    print("|---|---|---|---|")
    with opened_line(recipe, options.work) as line:
        traces = traced(line)
    unets: dict[str, Path] = {}
    for trial in chosen:
        with opened_line(_changed(recipe, trial), options.work) as line:
            unets[trial.name] = line.compressed_by("unet", line.recipe.compress.unet).folder
            figures = sqnr_by_step(line, unets[trial.name], traces)
        ends = (figures.mean(), figures[0], figures[-1])
        print(f"| {trial.name} | {' | '.join(f'{one:.1f} dB' for one in ends)} |", flush=True)
    first = TRIALS[0].name
    timed = [one.name for one in chosen if "convert" in one.sections]
    if first not in unets or not timed:
        return
    with opened_line(recipe, options.work) as line:
        seconds = call_seconds(line, {name: unets[name] for name in (first, *timed)})
    print("\nA call, in turn:")
    for name, turns in seconds.items():
        by_first = as_ratio(ratio(seconds, name, first))
        print(f"- {name}: {min(turns) * 1e3:.1f} ms, {by_first}")


def _changed(recipe: Recipe, trial: Trial) -> Recipe:
    for name, values in trial.sections.items():
        section = getattr(recipe, name).model_copy(update=values)
        recipe = recipe.model_copy(update={name: section})
    method = type(recipe.compress.unet).model_validate(trial.unet)
    return recipe.with_unet(method)


if __name__ == "__main__":
    main()
