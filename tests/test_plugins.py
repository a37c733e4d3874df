"""Scorers of other packages: found by name, asked only when wanted, refused when they lie."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdcompress.errors import EvaluationError
from sdcompress.evaluate.plugins import apply_plugin, find_plugins, load_plugin

MODULE = """
import numpy as np
from PIL import Image
from sdcompress.evaluate.metrics import Metric

class Brightness:
    metric = Metric("{metric}", "brightness", "{kind}", "higher", "", "mean grey", 0, 255, "a test")

    def __call__(self, files, prompts):
        return [{value} for file in files]

def load():
    return Brightness()
"""
GREY = "np.asarray(Image.open(file).convert('L')).mean()"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Installs a package that brings a scorer `brightness`, as pip would."""

    def install(metric: str = "brightness", kind: str = "picture", value: str = GREY) -> None:
        sys.modules.pop("brightness_scorer", None)
        source = MODULE.format(metric=metric, kind=kind, value=value)
        (tmp_path / "brightness_scorer.py").write_text(source)
        info = tmp_path / "brightness_scorer-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: brightness-scorer\nVersion: 1.2\n"
        )
        (info / "entry_points.txt").write_text(
            "[sdcompress.scorers]\nbrightness = brightness_scorer:load\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path))

    return install


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    files = []
    for grey in (10, 200):
        files.append(tmp_path / f"{grey}.png")
        Image.new("RGB", (8, 8), (grey, grey, grey)).save(files[-1])
    return files


def test_an_installed_scorer_is_asked(installed: Callable[..., None], pictures: list[Path]) -> None:
    installed()
    (point,) = find_plugins(["brightness"])
    assert point.dist is not None
    assert point.dist.version == "1.2"
    found = apply_plugin(load_plugin("brightness"), pictures, ["a", "b"])
    np.testing.assert_array_equal(found, [10, 200])


def test_an_unknown_scorer_names_the_nearest(installed: Callable[..., None]) -> None:
    installed()
    with pytest.raises(EvaluationError, match="did you mean 'brightness'"):
        find_plugins(["brigtness"])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"kind": "pair"}, "must have the scorer's name and be of kind 'picture'"),
        ({"metric": "other"}, "must have the scorer's name"),
        ({"value": "1 / 0"}, "fails: division by zero"),
        ({"value": "float('nan')"}, "not finite"),
        ({"value": "(1, 2)"}, r"shape \(2, 2\) for 2 pictures"),
    ],
)
def test_a_scorer_that_lies_is_refused(
    change: dict[str, str], expected: str, installed: Callable[..., None], pictures: list[Path]
) -> None:
    installed(**change)
    with pytest.raises(EvaluationError, match=expected):
        apply_plugin(load_plugin("brightness"), pictures, ["a", "b"])
