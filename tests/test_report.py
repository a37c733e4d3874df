"""The report of a real run: valid by its schema, true to the files, readable, comparable."""

import csv
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner
from PIL import Image

from sdcompress.cli import main
from sdcompress.errors import InputError
from sdcompress.ir import ir_bytes
from sdcompress.report.comparison import Comparison, compare
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
    scores = [sample["scores"]["clip_score"] for sample in samples]
    drops = [one["compressed"] - one["baseline"] for one in scores]
    assert quality["clip_score"]["difference"] == pytest.approx(sum(drops) / count)
    low, high = quality["clip_score"]["ci95"]
    assert low <= quality["clip_score"]["difference"] <= high
    for name in ("ssim", "psnr_db"):
        values = [sample["likeness"][name] for sample in samples]
        assert quality[name] == {"mean": pytest.approx(sum(values) / count), "min": min(values)}
    by_name = {metric["name"]: metric for metric in quality["metrics"]}
    assert by_name["clip_score"]["value"] == quality["clip_score"]["difference"]
    assert by_name["ssim"]["worst"] == quality["ssim"]["min"]


def test_markdown_shows_the_same_figures(report: Any, bundle: Path) -> None:
    text = (bundle / "report/report.md").read_text(encoding="utf-8")
    assert text.startswith("# unet_int8: passed")
    assert f"{report['quality']['ssim']['mean']:.4f}" in text
    clip = report["quality"]["clip_score"]
    assert f"| {clip['baseline']:.2f} | {clip['compressed']:.2f} |" in text
    for budget in report["budgets"]:
        assert f"| {budget['name']} |" in text
    for span in ("It is from 0 to 100", "It is from -1 to 1", "It is 0 or more"):
        assert span in text


def test_the_grid_shows_the_pairs(bundle: Path) -> None:
    with Image.open(bundle / "report/grid.png") as grid:
        assert grid.width > 6 * 192
        assert grid.height > 2 * 2 * 192
        assert len(grid.convert("RGB").getcolors(1 << 24) or []) > 100


def changed(bundle: Path, folder: Path, change: Callable[[Any], None]) -> Path:
    """A copy of the bundle's report, with something changed in it."""
    report = json.loads((bundle / "report/report.json").read_text(encoding="utf-8"))
    change(report)
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
    return folder


def best(comparison: Comparison) -> dict[str, list[str]]:
    return {
        row.name: [
            name for name, cell in zip(comparison.names, row.cells, strict=True) if cell.best
        ]
        for row in comparison.rows
    }


def test_compare_marks_the_better_value(bundle: Path, tmp_path: Path) -> None:
    def worse(report: Any) -> None:
        for metric in report["quality"]["metrics"]:
            if metric["name"] == "ssim":
                metric["value"] = 0.1
        report["performance"]["compressed"]["peak_rss_bytes"] = 1_000_000

    comparison = compare([bundle, changed(bundle, tmp_path / "other", worse)])
    found = best(comparison)
    assert comparison.names == ("unet_int8", "other")
    assert found["SSIM"] == ["unet_int8"]
    assert found["peak RSS MB"] == ["other"]
    assert found["UNet MB"] == []  # equal
    assert comparison.notes == ()


def test_candidates_are_paired_picture_by_picture(bundle: Path, tmp_path: Path) -> None:
    def better(report: Any) -> None:
        for index, sample in enumerate(report["samples"]):
            sample["scores"]["clip_score"]["compressed"] += 1 + 0.1 * index

    comparison = compare([bundle, changed(bundle, tmp_path / "other", better)])
    (clip,) = [one for one in comparison.differences if one.metric == "CLIP score"]
    assert (clip.name, clip.samples) == ("other", 8)
    assert clip.mean == pytest.approx(1.35)
    assert 1 < clip.low < clip.mean < clip.high < 1.7
    (ssim,) = [one for one in comparison.differences if one.metric == "SSIM"]
    assert (ssim.mean, ssim.low, ssim.high) == (0, 0, 0)


@pytest.mark.parametrize(
    ("path", "value", "what", "marked", "fair"),
    [
        (("quality", "clip_score", "scorer"), "another", "CLIP scorers", "CLIP score", "SSIM"),
        (("recipe", "sampling", "steps"), 3, "sampling settings", "load s", "UNet MB"),
        (("samples", 0, "seed"), 999, "prompts or seeds", "CLIP score", "load s"),
        (("environment", "cpu"), "another", "processors", "picture s", "CLIP score"),
        (
            ("environment", "execution_precisions", "compressed", "unet"),
            "another",
            "execution precisions",
            "picture s",
            "CLIP score",
        ),
    ],
)
def test_what_cannot_be_compared_is_marked(
    path: tuple[Any, ...], value: Any, what: str, marked: str, fair: str,
    bundle: Path, tmp_path: Path,
) -> None:  # fmt: skip
    def other(report: Any) -> None:
        for key in path[:-1]:
            report = report[key]
        report[path[-1]] = value

    comparison = compare([bundle, changed(bundle, tmp_path / "other", other)])
    assert any(what in note for note in comparison.notes)
    cells = {row.name: row.cells for row in comparison.rows}
    assert [cell.comparable for cell in cells[marked]] == [True, False]
    assert [cell.comparable for cell in cells[fair]] == [True, True]
    assert all("other" not in names for name, names in best(comparison).items() if name == marked)


def test_pairs_that_both_reports_have_are_compared_among_others(
    bundle: Path, tmp_path: Path
) -> None:
    def other(report: Any) -> None:
        report["samples"][0]["seed"] = 999

    comparison = compare([bundle, changed(bundle, tmp_path / "other", other)])
    (ssim,) = [one for one in comparison.differences if one.metric == "SSIM"]
    assert (ssim.samples, ssim.mean) == (7, 0)


def test_the_front_has_those_that_nothing_beats(bundle: Path, tmp_path: Path) -> None:
    def slow(report: Any) -> None:
        for key in ("image_seconds", "peak_rss_bytes", "disk_bytes"):
            report["performance"]["compressed"][key] *= 100

    points = compare([bundle, changed(bundle, tmp_path / "slow", slow)]).points
    assert [(one.name, one.on_front) for one in points] == [
        ("baseline of unet_int8", True),  # draws best
        ("unet_int8", True),
        ("slow", False),
    ]


def test_compare_prints_csv_and_json(bundle: Path, tmp_path: Path) -> None:
    other = changed(bundle, tmp_path / "other", lambda report: report.update(status="failed"))
    page = tmp_path / "page.html"
    arguments = ["compare", str(bundle), str(other)]
    table = CliRunner().invoke(main, [*arguments, "--csv", "--html", str(page)])
    rows = list(csv.reader(table.output.splitlines()))
    assert rows[0] == ["figure", "unet_int8", "other"]
    assert rows[1] == ["status", "passed", "failed"]
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    whole = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).output)
    assert whole["names"] == ["unet_int8", "other"]
    assert len(whole["points"]) == 3


def test_compare_refuses_what_is_no_report(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no report\.json"):
        compare([tmp_path])
    (tmp_path / "report.json").write_text('{"schema": 99}')
    with pytest.raises(InputError, match="not a report of schema 1"):
        compare([tmp_path])
