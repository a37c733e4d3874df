"""Shared fixtures: the smallest real things, built once a session from the shipped demo model."""

import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from sdcompress.recipe import Recipe

# No test may reach the network. The libraries read these when they are first imported: the hub's,
# and those that report events from forked copies of the process, which wait for a network in vain.
os.environ.update(HF_HUB_OFFLINE="1", CI="true", NNCF_CI="1")
if "PYTEST_XDIST_WORKER" in os.environ:
    # PyTorch's threads wait by spinning, which starves the test process beside this one.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

QUICK = (
    "sampling.steps=8",
    "calibrate.prompts=4",
    "calibrate.samples=32",
    "evaluate.prompts=8",
    "evaluate.sqnr_prompts=1",
    "evaluate.yardstick_prompts=2",
    "evaluate.timed_images=1",
    # Eight pictures prove nothing about a CLIP score; likeness and size they do show.
    "budgets={ssim_min: 0.5, unet_bytes_ratio: 0.5}",
)


def quick_recipe(name: str, *overrides: str) -> "Recipe":
    """A shipped recipe, shortened so that it runs in seconds on the demo."""
    from sdcompress.recipe import load_recipe
    from sdcompress.shipped import shipped_folder

    return load_recipe(shipped_folder("recipes") / f"{name}.yaml", (*QUICK, *overrides))


@pytest.fixture(scope="session", autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a user's cache remembers of other runs must not help a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SDCOMPRESS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def build_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One output parent for the session, so that runs share finished stages as a user's do.

    Test processes side by side share it, too.
    """
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "build"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def bundle(build_folder: Path) -> Path:
    """The bundle of recipes/unet_int8.yaml, evaluated on few pictures. Nothing may change it."""
    from filelock import FileLock

    from sdcompress.workflow import quantize

    output = build_folder / "unet_int8"
    with FileLock(build_folder / "bundle.lock"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # raised inside the libraries, not ours to fix
        if not output.exists():
            assert quantize(quick_recipe("unet_int8"), output).bundle == output
    return output


@pytest.fixture
def isolated(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The demo is worked on as a large model is, in processes apart; lists what ran in them."""
    from sdcompress import line

    called: list[str] = []

    def spying(function: Callable[..., Any], *arguments: Any, on_progress: Any) -> Any:
        called.append(function.__name__)
        return run_isolated(function, *arguments, on_progress=on_progress)

    run_isolated = line.run_isolated
    monkeypatch.setattr(line, "run_isolated", spying)
    monkeypatch.setattr(line, "SMALL_MODEL_BYTES", 0)
    return called


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
