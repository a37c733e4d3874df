"""What drawing is expected to take, what it takes, and what a limit makes of it."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op
from toy_model import write_toy_model

from sdcompress.runtime import Economy, InputError, Pipeline, Settings
from sdcompress.runtime.content import Content, content_of
from sdcompress.runtime.economy import TOGETHER, choose_economy, expected_peaks, report

LARGE = Settings(steps=2, width=512, height=512)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return Pipeline.load(write_toy_model(tmp_path_factory.mktemp("toy") / "model"))


def test_weights_count_as_they_are_kept_and_outputs_only_of_what_is_computed() -> None:
    values = op.parameter([2, 64], np.float32)
    half = op.convert(op.constant(np.ones((64, 1000), np.float16)), "f32")  # unpacked: no output
    small = op.convert(op.constant(np.ones((1000, 10), np.int8)), "f32")
    wide = op.matmul(values, half, False, False)
    model = ov.Model([op.matmul(wide, small, False, False)], [values])
    assert content_of(model, 4, 7) == Content(4 * 64_000 + 10_000, 4 * 2 * 1000, 7)
    assert content_of(model, 2, 7) == Content(2 * 64_000 + 10_000, 2 * 2 * 1000, 7)


def expected(pipeline: Pipeline, economy: Economy) -> dict[str, float]:
    return expected_peaks(pipeline, LARGE, 1, economy)


def test_everything_that_saves_memory_is_expected_to(pipeline: Pipeline) -> None:
    plain = expected(pipeline, Economy())
    assert list(plain) == ["text_encoder", "unet", "vae_decoder"]
    assert expected(pipeline, Economy(branches_apart=True))["unet"] < plain["unet"]
    tiled = [expected(pipeline, Economy(vae_tile=tile))["vae_decoder"] for tile in (16, 32, 48)]
    assert tiled == sorted(tiled)
    assert tiled[-1] < plain["vae_decoder"]
    (together,) = expected(pipeline, Economy(in_turn=False)).values()
    assert together > max(plain.values())


def test_the_size_counts_also_where_models_are_compiled_for_all(pipeline: Pipeline) -> None:
    dynamic = Pipeline.load(pipeline.folder, static=False)
    assert expected(dynamic, Economy()) == expected(pipeline, Economy())


def test_the_quickest_way_below_the_limit_is_chosen(pipeline: Pipeline) -> None:
    choices = (Economy(), Economy(branches_apart=True, vae_tile=16))
    quick, thrifty = (max(expected(pipeline, one).values()) for one in choices)
    assert choose_economy(pipeline, LARGE, 1, int(quick) + 1) == Economy()
    chosen = choose_economy(pipeline, LARGE, 1, int(quick) - 1)
    assert chosen != Economy()
    assert max(expected(pipeline, chosen).values()) < quick
    assert choose_economy(pipeline, LARGE, 1, int(thrifty) + 1).vae_tile is not None
    with pytest.raises(InputError, match=r"0.01 GB do not suffice.*unet .* GB"):
        choose_economy(pipeline, LARGE, 1, 10_000_000)


def test_a_report_shows_every_phase() -> None:
    lines = [*report(Economy(vae_tile=24), {"unet": 2e9}, {"vae_encoder": 1_500_000_000})]
    assert lines[0] == (
        "memory: parts in turn, guidance branches in one batch, "
        "pictures decoded in tiles of 24 x 24 cells"
    )
    assert [line.split() for line in lines[2:]] == [
        ["unet", "2.00", "GB", "-"],
        ["vae_encoder", "-", "1.50", "GB"],
    ]


CHILD = """
import json, sys
from pathlib import Path
from sdcompress.runtime import Economy, Job, Pipeline, Settings, draw_in_phases, stream
from sdcompress.runtime.economy import TOGETHER, expected_peaks
from sdcompress.runtime.residence import PhasePeaks

folder, given = sys.argv[1:]
economy = Economy(**json.loads(given))
pipeline = Pipeline.load(folder, verify="never", economy=economy)
settings, peaks = Settings(steps=2, width=512, height=512), PhasePeaks()
with peaks.watching():
    if economy.in_turn:
        drawn = draw_in_phases(pipeline, [Job("a red ring")], settings, on_phase=peaks.begin)
    else:
        peaks.begin(TOGETHER)
        drawn = stream(pipeline, [Job("a red ring")], settings)
    list(drawn)
print(json.dumps([expected_peaks(pipeline, settings, 1, economy), peaks.peaks]))
"""


@pytest.mark.parametrize(
    "economy",
    [Economy(), Economy(branches_apart=True, vae_tile=16), Economy(in_turn=False)],
    ids=["plain", "thrifty", "together"],
)
def test_a_picture_takes_what_was_expected(bundle: Path, economy: Economy) -> None:
    """On the demo, drawn four times as wide as it was trained for, in a process of its own."""
    command = [sys.executable, "-c", CHILD, str(bundle), json.dumps(asdict(economy))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    told, measured = json.loads(done.stdout.splitlines()[-1])
    assert set(told) == set(measured) == ({TOGETHER} if not economy.in_turn else
                                          {"text_encoder", "unet", "vae_decoder"})  # fmt: skip
    for phase, size in told.items():
        assert size == pytest.approx(measured[phase], rel=0.25), phase
