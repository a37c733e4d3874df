"""The whole search in a reduced form: what it finds is a recipe as any other."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import quick_recipe

from sdcompress.errors import InputError, QualityGateFailed, RecipeError
from sdcompress.evaluate.pictures import Pictures
from sdcompress.identity import COMPRESSED
from sdcompress.ir import IR_NAME, ir_bytes
from sdcompress.line import find_material
from sdcompress.methods import Mixed
from sdcompress.opening import production_line
from sdcompress.precision import layers_of
from sdcompress.progress import Advance, SilentProgress
from sdcompress.recipe import Recipe, load_recipe
from sdcompress.runtime import NotFiniteError
from sdcompress.runtime.manifest import sha256_of
from sdcompress.search import cost
from sdcompress.search.groups import CONTENT_KINDS
from sdcompress.search.sensitivity import WHOLE
from sdcompress.searching import Found, search
from sdcompress.trial import Trial
from sdcompress.ways import Folders, Way

pytestmark = pytest.mark.filterwarnings("ignore")  # raised inside the libraries

# One of the variants is the recipe's own method.
REDUCED = (
    "search={objective: size, timesteps: 2, confirmed: 1, trajectory_steps: 2, candidates: 1, "
    "prompts: 2, size_max: 8.8MB, variants: {weights4: {method: int4_weights}, "
    "w8a8: {method: int8, ignored: {patterns: ['.*conv_in.*', '.*conv_out.*']}}}}",
    "name=found_small",
)


def reduced(*overrides: str) -> Recipe:
    return quick_recipe("unet_int8", *REDUCED, *overrides)


@pytest.fixture(scope="module", autouse=True)
def _timed_in_short() -> Iterator[None]:
    """These searches go by size, so that times need not be exact."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "_ROUNDS_OF_SMALL", 2)
        patch.setattr(cost, "_SECONDS", 0.1)
        yield


@pytest.fixture(scope="module")
def found(bundle: Path, build_folder: Path) -> Found:
    del bundle  # converted and calibrated on the way
    return search(reduced(), build_folder / "found_small-search")


def test_the_recipe_makes_what_was_found(found: Found, build_folder: Path) -> None:
    from sdcompress.workflow import quantize

    recipe = load_recipe(found.recipe)
    assert isinstance(recipe.compress.unet, Mixed)
    assert recipe.compress.unet == found.chosen.method
    again = quantize(recipe, build_folder / "found_again")
    hashes = [
        json.loads((run / "manifest.json").read_text())["files"]["unet/openvino_model.bin"]
        for run in (found.run.output, again.output)
    ]
    assert hashes[0] == hashes[1]


def test_it_keeps_to_the_limit_of_its_search(found: Found) -> None:
    assert 8e6 < found.chosen.stored_bytes <= 8.8e6
    assert found.run.passed


def test_it_leaves_a_page_and_all_figures(found: Found) -> None:
    assert sorted(one.name for one in found.folder.iterdir()) == [
        "found_small.search.yaml",
        "search.html",
        "search.json",
    ]
    told = json.loads((found.folder / "search.json").read_text())
    assert {one["name"] for one in told["candidates"]} == {"as the recipe says", "choice 1"}
    assert set(told["sensitivity"]) == {"w8a8", "weights4"}
    for one in told["sensitivity"].values():
        assert all(0.1 < drawn["ssim"] < 1.0 for drawn in one["drawn"])
        assert all(drawn["checker"] in (-100.0, 0.0, 100.0) for drawn in one["drawn"])
        assert all(len(error["noise"]) == len(one["timesteps"]) == 2 for error in one["errors"])
        seen = {error["group"]: error["content"] for error in one["errors"] if error["content"]}
        assert all(group.endswith((*CONTENT_KINDS, WHOLE)) for group in seen)
        assert all(0.0 < loss < 2.0 for losses in seen.values() for loss in losses)
        # Each timestep speaks of a picture of its own.
        assert all(len(set(losses)) == 2 for losses in seen.values())
    page = (found.folder / "search.html").read_text()
    assert page.count(">checker<") == 2  # of the candidates, and of the groups drawn with
    assert f"{found.chosen.name} passed the gate." in page
    assert page.count("<svg") == 6  # two fronts; of each variant heat maps of both yardsticks


class Stopped(SilentProgress):
    """Stops a search at the third group."""

    @contextmanager
    def stage(self, name: str, detail: str) -> Iterator[Advance]:
        def advance(done: int, total: int) -> None:
            del total
            if name == "sensitivity" and done == 3 * 2:  # calls, two of each group
                raise KeyboardInterrupt

        with super().stage(name, detail):
            yield advance


def test_stopped_and_measured_anew_it_finds_the_same(found: Found, build_folder: Path) -> None:
    store = build_folder / ".sdcompress"
    for kept in store.glob("sensitivity-*"):
        shutil.rmtree(kept)
    with pytest.raises(KeyboardInterrupt):
        search(reduced(), build_folder / "found_small-search", progress=Stopped())
    measured = {one.name: one.stat().st_mtime_ns for one in store.rglob("calls-*.json")}
    assert sorted(measured) == [f"calls-{index:04d}.json" for index in range(3)]
    again = search(reduced(), build_folder / "found_small-search")
    assert again.chosen.choice == found.chosen.choice
    (entry,) = (one.parent for one in store.rglob("calls-0000.json")
                if one.stat().st_mtime_ns == measured[one.name])  # fmt: skip
    assert {name: (entry / name).stat().st_mtime_ns for name in measured} == measured


def test_its_patterns_find_the_same_layers_in_a_fine_tune(found: Found, tmp_path: Path) -> None:
    tuned_model = fine_tuned(tmp_path / "fine-tuned")
    quick = ("calibrate.prompts=1", "calibrate.samples=4")  # names are compared, not quality
    recipe = load_recipe(found.recipe, (f"model={tuned_model}", *quick))
    progress = SilentProgress()
    material = find_material(recipe, progress)
    # In a store of its own: others take the one model that is converted in theirs.
    with production_line(recipe, tmp_path / "build/tuned", material, progress) as line:
        tuned = line.compressed_by("unet", recipe.compress.unet).folder
        folders = (found.run.output / "unet", tuned)
        precisions, weights = zip(*map(layers_and_weights, folders), strict=True)
    assert precisions[0] == precisions[1]
    assert len(set(precisions[0].values())) > 1
    assert weights[0] != weights[1]


def fine_tuned(folder: Path) -> Path:
    """The demo after some steps of training its UNet further, in diffusers' layout."""
    import torch
    from diffusers import UNet2DConditionModel

    from sdcompress.demo import MODEL_DIR

    shutil.copytree(MODEL_DIR, folder)
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-5)
    for _ in range(3):
        noisy, noise = torch.randn(2, 4, 16, 16), torch.randn(2, 4, 16, 16)
        text = torch.randn(2, 77, unet.config.cross_attention_dim)
        loss = (unet(noisy, torch.tensor([300, 700]), text).sample - noise).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    unet.half().save_pretrained(folder / "unet")
    return folder


def layers_and_weights(unet: Path) -> tuple[dict[str, str], str]:
    """The precision of each of the UNet's layers, and the hash of its weights."""
    layers = {one.name: one.precision for one in layers_of(unet / IR_NAME)}
    return layers, sha256_of(unet / "openvino_model.bin")


def test_when_nothing_passes_it_says_what_stands_in_the_way(
    found: Found, build_folder: Path
) -> None:
    del found  # measured on the way
    strict = reduced("budgets={ssim_min: 0.9999}", "name=found_strict")
    with pytest.raises(
        QualityGateFailed, match="no candidate passes the gate; the last"
    ) as refusal:
        search(strict, build_folder / "found_strict-search")
    assert "ssim_min" in str(refusal.value)
    assert "found_strict-search/search.html" in refusal.value.args[0].replace("\\", "/")
    assert re.search(r"\w+ +as (w8a8|weights4) +\d+\.\d dB", str(refusal.value))
    kept = sorted(one.name for one in (build_folder / "found_strict-search").iterdir())
    assert kept == ["search.html", "search.json"]


def test_candidates_that_overflow_have_failed_and_nothing_is_lost(
    found: Found, build_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del found  # measured on the way

    draw = Trial.draw

    def overflowing(trial: Trial, way: Way, folders: Folders) -> Pictures:
        if way.side == COMPRESSED:
            raise NotFiniteError("the latents are not finite")
        return draw(trial, way, folders)

    monkeypatch.setattr(Trial, "draw", overflowing)
    with pytest.raises(QualityGateFailed, match="it overflows: the latents are not finite"):
        search(reduced("name=found_broken"), build_folder / "found_broken-search")
    told = json.loads((build_folder / "found_broken-search/search.json").read_text())
    for one in told["candidates"]:
        assert (one["figures"], one["outcome"], one["on_front"]) == ({}, "failed", False)
        assert one["call_seconds"] > 0.0


def test_limits_out_of_reach_are_told_in_the_recipes_words(
    found: Found, build_folder: Path
) -> None:
    del found  # measured on the way
    store = build_folder / ".sdcompress"
    before = set(store.glob("cost-*"))
    tight = reduced(
        "search.size_max=2MB",
        "search.latency_ratio_max=0.01",
        "execution_precision=f32",  # which costs are not those of the device's own
        "name=found_tight",
    )
    with pytest.raises(InputError, match=r"no choice of search\.variants keeps") as refusal:
        search(tight, build_folder / "found_tight-search")
    assert re.search(r"search\.size_max 2MB: \d[.\d]*MB at least", str(refusal.value))
    assert re.search(r"search\.latency_ratio_max 0\.01: 0\.\d+ at least", str(refusal.value))
    (measured,) = set(store.glob("cost-*")) - before
    costs = json.loads((measured / "record.json").read_text())
    (converted,) = store.glob("convert-*")
    # 32 bits as in the converted file, whatever this processor would choose.
    assert costs["fp16"]["executed_bytes"] > 0.9 * ir_bytes(converted / "unet")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("search.variants={fp16: {method: int8}}", "every group may stay in 16 bits anyway"),
        ("search.variants={w: {method: fp16}}", "every group may stay in 16 bits anyway"),
        ("search.variants={}", "there is nothing to choose from"),
        ("search.size_max=700", "700: write a size such as 2GB"),
        ("search.memory_max=700 kB", "write a size such as 2GB"),
        ("search.trajectories=3", r"there are 2 search\.prompts"),
    ],
)
def test_settings_that_make_no_sense_are_faults_of_the_recipe(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        reduced(override)


def test_what_it_cannot_do_is_told_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"asks for 400 calls, but \d+ are recorded"):
        search(reduced("search.timesteps=400"), tmp_path / "found")
    many = r"search\.prompts asks for 9999 prompts beside the 4 that are calibrated on"
    with pytest.raises(InputError, match=many):
        search(reduced("search.prompts=9999"), tmp_path / "found")
    for folder in (".", Path.cwd().anchor):
        with pytest.raises(InputError, match="is the current or the topmost folder"):
            search(reduced(), folder)
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(InputError, match=r"holds mine\.txt, which a search did not write"):
        search(reduced(), tmp_path)
    with pytest.raises(InputError, match="which sdcompress did not write"):
        (tmp_path / "found-bundle").mkdir()
        (tmp_path / "found-bundle" / "mine.txt").write_text("precious")
        search(reduced(), tmp_path / "found")
