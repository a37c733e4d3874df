"""Shared fixtures: the smallest real things, built once a session from the shipped demo model."""

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from sdcompress.recipe import Recipe

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach the network; read when first imported

QUICK = (
    "sampling.steps=8",
    "calibrate.prompts=4",
    "calibrate.samples=32",
    "evaluate.prompts=8",
    "evaluate.sqnr_prompts=2",
    "evaluate.timed_images=1",
    # Eight pictures prove nothing about a CLIP score; likeness and size they do show.
    "budgets={ssim_min: 0.5, unet_bytes_ratio: 0.5}",
)


def quick_recipe(name: str, *overrides: str) -> "Recipe":
    """A shipped recipe, shortened so that it runs in seconds on the demo."""
    from sdcompress.recipe import load_recipe
    from sdcompress.shipped import shipped_folder

    return load_recipe(shipped_folder("recipes") / f"{name}.yaml", (*QUICK, *overrides))


@pytest.fixture(scope="session")
def build_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One output parent for the session, so that runs share finished stages as a user's do."""
    return tmp_path_factory.mktemp("build")


@pytest.fixture(scope="session")
def bundle(build_folder: Path) -> Path:
    """The bundle of recipes/unet_int8.yaml, evaluated on few pictures."""
    from sdcompress.workflow import quantize

    recipe = quick_recipe("unet_int8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # raised inside the libraries, not ours to fix
        run = quantize(recipe, build_folder / "unet_int8")
    assert run.bundle is not None
    return run.bundle


@pytest.fixture(scope="session")
def baseline(bundle: Path, build_folder: Path) -> Path:
    """The FP32 IR that the bundle was made from."""
    del bundle  # converted on the way
    (folder,) = (build_folder / ".sdcompress").glob("convert-*")
    return folder


@pytest.fixture(scope="session")
def model_folder() -> Path:
    from sdcompress.demo import MODEL_DIR

    return MODEL_DIR
