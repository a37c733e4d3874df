"""What `bench` tries, and what is remembered of it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from toy_model import write_toy_model

from sdcompress.cli import main
from sdcompress.errors import EvaluationError, InputError
from sdcompress.runtime import Pipeline, Settings
from sdcompress.tuning import Cell, Tuning, grid, recall, remember


def test_every_combination_is_tried_and_one_picture_in_other_ways() -> None:
    found = grid((1, 2), (4,), Settings(), (None, 3), ("in turn",))
    plain = [one for one in found if one.branches is None]
    assert len(plain) == len(set(plain)) == 2 * 2 * 2 * 2  # streams, batches, shapes, threads
    assert [one for one in found if one.branches] == [
        Tuning(1, 1, True, threads, "in turn") for threads in (None, 3)
    ]
    thinned = grid((1,), (1,), Settings(attention_stride=2))
    assert [one.static for one in thinned] == [True]


def test_only_what_the_file_allows_is_another_way(tmp_path: Path) -> None:
    free, fixed = (
        Pipeline.load(write_toy_model(tmp_path / str(batch), batch=batch)) for batch in (-1, 2)
    )
    assert free.other_branches(Settings()) == ("in one batch", "in turn")
    # These would compile anew in every picture.
    assert free.other_branches(Settings(guidance_end=0.5)) == ()
    assert free.other_branches(Settings(guidance_scale=1.0)) == ()
    assert fixed.other_branches(Settings()) == ()


def test_what_is_remembered_is_recalled_and_damage_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDCOMPRESS_CACHE", str(tmp_path / "cache"))
    tuning = Tuning(2, 4, False, 3, "in turn")
    best = {"latency": Cell(tuning, 1.0, 1.0, None)}
    file = remember(tmp_path, "CPU", None, best)
    assert recall(tmp_path, "CPU", None, "latency") == tuning
    # What an earlier version left.
    file.write_text(json.dumps({"latency": {"streams": 2, "batch": 1, "static": True}}))
    assert recall(tmp_path, "CPU", None, "latency") == Tuning(2, 1, True)
    file.write_text(json.dumps({"latency": {"branches": "sideways"}}))
    with pytest.raises(InputError, match="was not measured on this machine"):
        recall(tmp_path, "CPU", None, "latency")


def test_another_version_and_other_shortcuts_are_measured_anew(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDCOMPRESS_CACHE", str(tmp_path / "cache"))
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    best = {"latency": Cell(Tuning(static=False), 1.0, 1.0, None)}
    remember(copy, "CPU", None, best)
    assert recall(copy, "CPU", None, "latency") == Tuning(static=False)
    with monkeypatch.context() as patch:
        patch.setattr("sdcompress.tuning.version", lambda name: f"another {name}")
        with pytest.raises(InputError, match="was not measured"):
            recall(copy, "CPU", None, "latency")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["recipe"]["runtime"]["attention_stride"] = 2  # which needs fixed shapes
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="was not measured"):
        recall(copy, "CPU", None, "latency")


def bench(folder: Path, *options: object) -> tuple[int, str]:
    given = ["bench", str(folder), "--streams", "1", "--steps", "2", *map(str, options)]
    done = CliRunner().invoke(main, given)
    return done.exit_code, done.output


def test_what_was_measured_before_a_failure_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def measure(job: dict[str, Any]) -> dict[str, Any]:
        asked.append(job["batch"])
        if job["batch"] > 1:
            raise EvaluationError("measuring failed (exit -9): no memory")
        return {"image_seconds": 1.5, "images_per_second": 0.5, "peak_rss_bytes": 2e9}

    monkeypatch.setattr("sdcompress.tuning.measure_in_child", measure)
    code, output = bench(write_toy_model(tmp_path / "toy"))
    assert code != 0
    assert asked == [1, 2]
    assert "1.500 s" in output
    assert "no memory" in output


def test_a_file_for_one_picture_is_measured_with_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed = write_toy_model(tmp_path / "toy", batch=2)
    code, output = bench(fixed, "--batch", 2)
    assert code == 2
    assert "--batch can only be 1" in output
    asked: list[int] = []

    def measure(job: dict[str, Any]) -> dict[str, Any]:
        asked.append(job["batch"])
        raise EvaluationError("enough")

    monkeypatch.setattr("sdcompress.tuning.measure_in_child", measure)
    bench(fixed)
    assert asked == [1]
