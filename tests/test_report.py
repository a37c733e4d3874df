"""The report of a real run: valid by its schema, true to the files, readable, comparable."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from PIL import Image

from sdcompress.errors import InputError
from sdcompress.ir import ir_bytes
from sdcompress.report.comparison import compare
from sdcompress.report.document import SCHEMA_FILE


@pytest.fixture
def report(bundle: Path) -> Any:
    return json.loads((bundle / "report/report.json").read_text(encoding="utf-8"))


def validator() -> jsonschema.Draft202012Validator:
    schema = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_report_is_valid_by_the_shipped_schema(report: Any) -> None:
    validator().validate(report)
    assert report["status"] == "passed"


@pytest.mark.parametrize(
    "damage",
    [
        lambda r: r.pop("quality"),
        lambda r: r.update(status="maybe"),
        lambda r: r.update(extra=1),
        lambda r: r["performance"]["baseline"].pop("load_seconds"),
        lambda r: r["samples"][0].update(baseline="../elsewhere.png"),
        lambda r: r["quality"]["clip_score"].update(ci95=[0.0]),
    ],
)
def test_the_schema_notices_damage(report: Any, damage: Any) -> None:
    damage(report)
    assert not validator().is_valid(report)


def test_the_report_is_true_to_the_files(report: Any, bundle: Path, baseline: Path) -> None:
    for name, component in report["components"].items():
        assert component["baseline_bytes"] == ir_bytes(baseline / name)
        assert component["compressed_bytes"] == ir_bytes(bundle / name)
    assert len(report["samples"]) == 8
    for sample in report["samples"]:
        for side in ("baseline", "compressed"):
            with Image.open(bundle / "report" / sample[side]) as picture:
                assert picture.size == (128, 128)
                assert picture.text["prompt"] == sample["prompt"]


def test_the_precision_of_every_layer_is_recorded(report: Any, bundle: Path) -> None:
    layers = json.loads((bundle / "report/layers.json").read_text(encoding="utf-8"))
    for name, component in report["components"].items():
        counts = dict(Counter(layer["precision"] for layer in layers[name]))
        assert counts == component["layers_by_precision"]


def test_the_baseline_ran_in_f32(report: Any) -> None:
    assert set(report["environment"]["execution_precisions"]["baseline"].values()) == {"f32"}


def test_figures_follow_from_the_samples(report: Any) -> None:
    samples, quality = report["samples"], report["quality"]
    count = len(samples)
    drops = [s["clip_score_compressed"] - s["clip_score_baseline"] for s in samples]
    assert quality["clip_score"]["difference"] == pytest.approx(sum(drops) / count)
    low, high = quality["clip_score"]["ci95"]
    assert low <= quality["clip_score"]["difference"] <= high
    assert quality["ssim"]["min"] == min(s["ssim"] for s in samples)
    assert quality["psnr_db"]["mean"] == pytest.approx(sum(s["psnr_db"] for s in samples) / count)


def test_markdown_shows_the_same_figures(report: Any, bundle: Path) -> None:
    text = (bundle / "report/report.md").read_text(encoding="utf-8")
    assert text.startswith("# unet_int8: passed")
    assert f"{report['quality']['ssim']['mean']:.4f}" in text
    assert f"{report['quality']['clip_score']['compressed']:.3f}" in text
    for budget in report["budgets"]:
        assert f"| {budget['name']} |" in text


def test_the_grid_shows_the_pairs(bundle: Path) -> None:
    with Image.open(bundle / "report/grid.png") as grid:
        assert grid.width > 6 * 192
        assert grid.height > 2 * 2 * 192
        assert len(grid.convert("RGB").getcolors(1 << 24) or []) > 100


def test_compare_marks_the_better_value(bundle: Path, report: Any, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(bundle / "report", other / "report")
    report["quality"]["ssim"]["mean"] = 0.1
    report["performance"]["compressed"]["peak_rss_bytes"] = 1_000_000
    (other / "report/report.json").write_text(json.dumps(report))
    comparison = compare([bundle, other])
    best = {row.name: row.best for row in comparison.rows}
    assert comparison.names == ("unet_int8", "other")
    assert best["SSIM, mean"] == {0}
    assert best["peak RSS MB"] == {1}
    assert best["UNet MB"] == frozenset()  # equal
    assert comparison.warnings == ()


def test_compare_warns_of_different_scorers(bundle: Path, report: Any, tmp_path: Path) -> None:
    report["quality"]["clip_score"]["scorer"] = "another"
    (tmp_path / "report.json").write_text(json.dumps(report))
    (warning,) = compare([bundle, tmp_path]).warnings
    assert "CLIP scorers" in warning


def test_compare_refuses_what_is_no_report(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no report\.json"):
        compare([tmp_path])
    (tmp_path / "report.json").write_text('{"schema": 99}')
    with pytest.raises(InputError, match="not a report of schema 1"):
        compare([tmp_path])
