"""report.html and compare --html in a real browser: what a reader clicks, sees and downloads."""

import csv
import json
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdcompress.report.comparison import compare
from sdcompress.report.comparison_page import render_comparison
from sdcompress.report.html import render_html

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs chromium")
PHONE, WIDE = {"width": 390, "height": 844}, {"width": 1440, "height": 900}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def told(browser: Any) -> list[str]:
    """What the browser's console and network say while a page is open."""
    del browser
    return []


def opened(browser: Any, file: Path, told: list[str], **options: Any) -> Any:
    """A page in a context of its own; everything it says and asks for is written down."""
    page = browser.new_context(accept_downloads=True, **options).new_page()
    page.on("console", lambda message: told.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: told.append(f"error: {error}"))
    page.on(
        "request",
        lambda request: (
            None
            if request.url.startswith(("file:", "data:", "blob:"))
            else told.append(f"asked for {request.url}")
        ),
    )
    page.goto(file.as_uri())
    return page


@pytest.fixture
def page_file(bundle: Path) -> Path:
    return bundle / "report/report.html"


def visible(page: Any) -> list[str]:
    return page.locator(".pair:not([hidden]) .prompt").all_inner_texts()


def test_the_verdict_and_the_four_numbers_come_first(
    browser: Any, page_file: Path, told: list[str]
) -> None:
    report = json.loads((page_file.parent / "report.json").read_text())
    page = opened(browser, page_file, told, viewport=WIDE)
    assert "Passed" in page.locator("#verdict").inner_text()
    cards = page.locator(".numbers > div").all_inner_texts()
    assert len(cards) == 4
    assert f"{report['quality']['clip_score']['compressed']:.2f}" in cards[0]
    assert f"{report['performance']['compressed']['peak_rss_bytes'] / 1e6:.0f} MB" in cards[2]
    assert page.locator(".numbers").bounding_box()["y"] < WIDE["height"]
    assert told == []


def test_a_filter_an_order_and_three_ways_to_look(
    browser: Any, page_file: Path, told: list[str]
) -> None:
    report = json.loads((page_file.parent / "report.json").read_text())
    samples = report["samples"]
    page = opened(browser, page_file, told, viewport=WIDE)
    by_ssim = sorted(samples, key=lambda one: one["likeness"]["ssim"])
    assert visible(page) == [one["prompt"] for one in by_ssim]

    page.select_option("#order", label="CLIP score, difference")
    drops = [
        (one["scores"]["clip_score"]["compressed"] - one["scores"]["clip_score"]["baseline"], one)
        for one in samples
    ]
    worst = min(drops, key=lambda pair: pair[0])[1]
    assert visible(page)[0] == worst["prompt"]

    kind = samples[0]["category"]
    page.select_option("#category", kind)
    expected = {one["prompt"] for one in samples if one["category"] == kind}
    assert set(visible(page)) == expected
    assert page.locator("#shown").inner_text() == f"Pairs: {len(expected)}"
    page.select_option("#category", "")

    frame = page.locator(".frame").first
    slider = frame.locator("input")
    slider.focus()
    before = frame.screenshot()
    slider.press("Home")
    assert frame.evaluate("one => one.style.getPropertyValue('--cut')") == "0%"
    assert frame.screenshot() != before
    box = frame.bounding_box()
    page.mouse.click(box["x"] + 0.9 * box["width"], box["y"] + 0.5 * box["height"])
    assert int(slider.input_value()) > 80

    page.click("[data-mode=difference]")
    assert page.locator("[data-mode=difference]").get_attribute("aria-pressed") == "true"
    assert page.locator("[data-mode=slider]").get_attribute("aria-pressed") == "false"
    page.click("[data-mode=beside]")
    boxes = [frame.locator(name).bounding_box() for name in (".one", ".two")]
    assert boxes[1]["x"] >= boxes[0]["x"] + boxes[0]["width"]
    assert told == []


def test_the_difference_view_shows_the_difference(
    browser: Any, page_file: Path, told: list[str], tmp_path: Path
) -> None:
    """Four times the difference of the two small pictures, computed here with numpy."""
    page = opened(browser, page_file, told, viewport=WIDE)
    page.click("[data-mode=difference]")
    frame = page.locator(".frame").first
    sources = [frame.locator(name).get_attribute("src") for name in (".one", ".two")]
    box = frame.bounding_box()
    shot = tmp_path / "shot.png"
    frame.screenshot(path=shot)
    import base64
    import io

    pictures = []
    for source in sources:
        data = base64.b64decode(source.split(",", 1)[1])
        size = (round(box["width"]), round(box["height"]))
        picture = Image.open(io.BytesIO(data)).convert("RGB").resize(size)
        pictures.append(np.asarray(picture, np.float32))
    expected = np.clip(4 * np.abs(pictures[0] - pictures[1]), 0, 255)
    found = np.asarray(Image.open(shot).convert("RGB").resize(size), np.float32)
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.9
    assert found.mean() == pytest.approx(expected.mean(), rel=0.25, abs=2)


def test_every_table_is_downloadable_and_the_recipe_is_copyable(
    browser: Any, page_file: Path, told: list[str]
) -> None:
    page = opened(
        browser, page_file, told, viewport=WIDE, permissions=["clipboard-read", "clipboard-write"]
    )
    for details in page.locator("details").all():
        details.evaluate("one => { one.open = true; }")
    tables = page.locator("table").count()
    buttons = page.locator("[data-csv]")
    assert buttons.count() == tables >= 6
    for button in buttons.all():
        with page.expect_download() as download:
            button.click()
        table = page.locator(f"#{button.get_attribute('data-csv')}")
        text = Path(download.value.path()).read_text(encoding="utf-8-sig")
        rows = list(csv.reader(text.splitlines()))
        assert rows[0] == table.locator("thead th").all_text_contents()
        assert len(rows) == table.locator("tr").count()
    for _ in range(2):
        page.click("[data-copy=recipe]")
        page.wait_for_selector("[data-copy=recipe] + [role=status]:text('Copied')")
    assert page.locator("[data-copy=recipe]").inner_text() == "Copy the recipe"
    copied = page.evaluate("navigator.clipboard.readText()")
    assert "schema: 1" in copied
    assert "name: unet_int8" in copied
    assert told == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, WIDE], ids=["phone", "wide"])
def test_it_is_accessible_in_every_guise(
    browser: Any, page_file: Path, told: list[str], scheme: str, size: dict[str, int]
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page = opened(browser, page_file, told, viewport=size, color_scheme=scheme)
    for details in page.locator("details").all():
        details.evaluate("one => { one.open = true; }")
    found = Axe().run(page)
    problems = [
        (one["id"], [node["target"] for node in one["nodes"]][:3])
        for one in found.response["violations"]
    ]
    assert problems == []
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    assert told == []


def test_the_keyboard_reaches_everything(browser: Any, page_file: Path, told: list[str]) -> None:
    page = opened(browser, page_file, told, viewport=WIDE)
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate("(one => one.id || one.dataset.mode || one.type)(document.activeElement)")
        )
    assert {"category", "order", "slider", "beside", "difference", "range"} <= reached


@pytest.mark.parametrize("status", ["failed", "undecided"])
def test_awkward_reports_are_whole_pages(
    browser: Any, page_file: Path, told: list[str], tmp_path: Path, status: str
) -> None:
    report = json.loads((page_file.parent / "report.json").read_text())
    samples = report["samples"]
    prompts = [
        "<b>bold</b> & \"quoted\" 'text'", "قطة حمراء على كرسي", "word" * 100, "$x_1$ | `code`",
    ]  # fmt: skip
    for sample, prompt in zip(samples, prompts, strict=False):
        sample |= {"prompt": prompt, "category": '"><i>odd</i>'}
    samples[-1]["category"] = None
    report |= {"status": status}
    report["model"]["id"] = "/home/somebody/" + "models/" * 20
    report["recipe"]["description"] = ""
    report["budgets"][0] |= {"outcome": status, "more": 12 if status == "undecided" else None}
    report["quality"]["layer_errors"]["layers"] = []
    report["quality"]["looks"] = [
        {"budget": "ssim_min", "samples": 8, "mean": 0.9, "low": 0.8, "high": 1.0,
         "outcome": status},
    ]  # fmt: skip
    for side in ("baseline", "compressed"):
        (tmp_path / "samples" / side).mkdir(parents=True)
        for sample in samples:
            Image.new("RGB", (96, 32), "teal").save(tmp_path / sample[side])
    file = tmp_path / "report.html"
    file.write_text(render_html(report, tmp_path), encoding="utf-8")
    page = opened(browser, file, told, viewport=PHONE)
    assert set(prompts) <= set(visible(page))
    page.select_option("#category", '"><i>odd</i>')
    assert len(visible(page)) == 4
    assert page.locator(".verdict li").first.get_attribute("class") == status
    assert page.locator("#looks-table tbody tr").count() == 1
    box = page.locator(".frame").first.bounding_box()
    assert box["width"] == pytest.approx(3 * box["height"], rel=0.02)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert told == []


def test_two_hundred_pairs_stay_small_and_open_soon(
    browser: Any, page_file: Path, told: list[str], tmp_path: Path
) -> None:
    report = json.loads((page_file.parent / "report.json").read_text())
    rng, noise = random.Random(0), np.random.default_rng(0)
    rows, columns = np.mgrid[0:512, 0:512]
    for side in ("baseline", "compressed"):
        (tmp_path / "samples" / side).mkdir(parents=True)
    pairs = []
    for index in range(10):
        # As much detail as a photograph: smooth shapes with grain.
        shapes = [
            np.sin(rows / rng.uniform(5, 40) + columns / rng.uniform(5, 40)) for _ in range(3)
        ]
        pixels = 127 + 90 * np.stack(shapes, -1) + noise.normal(0, 12, (512, 512, 3))
        pairs.append(
            {side: f"samples/{side}/{index:05d}.png" for side in ("baseline", "compressed")}
        )
        for file in pairs[-1].values():
            picture = np.clip(pixels + noise.normal(0, 3, pixels.shape), 0, 255).astype(np.uint8)
            Image.fromarray(picture).save(tmp_path / file, compress_level=1)
    samples = [report["samples"][index % 8] | pairs[index % 10] for index in range(200)]
    page_of_many = tmp_path / "report.html"
    page_of_many.write_text(render_html(report | {"samples": samples}, tmp_path), encoding="utf-8")
    assert page_of_many.stat().st_size < 15e6
    start = time.monotonic()
    page = opened(browser, page_of_many, told, viewport=WIDE)
    page.wait_for_load_state("load")
    seconds = time.monotonic() - start
    assert page.locator(".pair").count() == 200
    assert seconds < 2
    assert told == []


def test_a_comparison_is_a_page_too(
    browser: Any, bundle: Path, told: list[str], tmp_path: Path
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    report = json.loads((bundle / "report/report.json").read_text())
    report["performance"]["compressed"]["image_seconds"] *= 2
    report["environment"]["cpu"] = "another"
    other = tmp_path / "slower"
    other.mkdir()
    (other / "report.json").write_text(json.dumps(report))
    file = tmp_path / "comparison.html"
    file.write_text(render_comparison(compare([bundle, other])), encoding="utf-8")
    page = opened(browser, file, told, viewport=PHONE)
    assert "different processors" in page.locator("main").inner_text()
    assert page.locator("svg").count() == 3
    assert page.locator("td.incomparable").count() > 3
    assert [one["id"] for one in Axe().run(page).response["violations"]] == []
    assert told == []
