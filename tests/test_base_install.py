"""What a base install is: small, without the toolkit, and able to draw. Run by `make test-base`."""

import subprocess
import sys
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path

import pytest
from toy_model import write_toy_model

pytestmark = pytest.mark.skipif(
    find_spec("torch") is not None, reason="the toolkit is installed; see make test-base"
)

LIMIT_BYTES = 350 * 2**20
TOOLKIT = {"torch", "transformers", "diffusers", "nncf", "optimum", "datasets", "pydantic", "scipy"}
# What runs these tests, and what a new environment holds anyway.
NOT_OURS = {"pip", "setuptools", "pytest", "pluggy", "iniconfig"}


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sdcompress", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_nothing_of_the_toolkit_is_installed() -> None:
    assert [name for name in TOOLKIT if find_spec(name)] == []


def test_it_is_small() -> None:
    total = 0
    for distribution in distributions():
        if distribution.metadata["Name"].lower() not in NOT_OURS:
            files = (Path(str(file.locate())) for file in distribution.files or ())
            total += sum(file.stat().st_size for file in files if file.is_file())
    assert 100 * 2**20 < total < LIMIT_BYTES, f"{total / 2**20:.0f} MiB"


def test_it_draws(tmp_path: Path) -> None:
    folder = write_toy_model(tmp_path / "model")
    done = run("generate", folder, "a red circle", "--steps", 2, "-o", tmp_path / "x.png")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "x.png").is_file()


@pytest.mark.parametrize(
    "command",
    [
        ["quantize", "unet_int8"],
        ["calibrate", "unet_int8"],
        ["convert", "demo", "out"],
        ["compare", "."],
        ["evaluate", "."],
        ["recipes"],
    ],
    ids=" ".join,
)
def test_toolkit_verbs_name_the_extra(command: list[str], tmp_path: Path) -> None:
    done = run(*(str(tmp_path) if word == "." else word for word in command))
    assert done.returncode == 2
    assert 'pip install "sdcompress[toolkit]"' in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", [("sign", "--key"), ("verify", "--public-key")])
def test_signatures_name_their_extra(tmp_path: Path, command: tuple[str, str]) -> None:
    (tmp_path / "key").write_text("")
    done = run(command[0], tmp_path, command[1], tmp_path / "key")
    assert done.returncode == 2
    assert 'pip install "sdcompress[signing]"' in done.stderr
