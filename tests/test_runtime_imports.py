"""What ships stands alone: it draws in an interpreter that has the base installation only."""

import subprocess
import sys
from pathlib import Path

import pytest
from toy_model import write_toy_model

BLOCK = """
import sys

class BaseInstallation:
    allowed = {"sdcompress", "click", "colorama", "numpy", "openvino", "openvino_telemetry", "PIL",
               "tokenizers"} | sys.stdlib_module_names

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in self.allowed:
            raise ModuleNotFoundError(f"{name} is not in the base installation", name=name)

sys.meta_path.insert(0, BaseInstallation())
"""
LIBRARY = """
from sdcompress.runtime import Pipeline, Settings, save_png
picture = Pipeline.load(sys.argv[1]).generate("a red circle", settings=Settings(steps=2))
save_png(picture, sys.argv[2], {"prompt": "a red circle"})
ours = {name for name in sys.modules if name.startswith("sdcompress.")}
assert all(name.startswith("sdcompress.runtime") for name in ours), ours
"""
COMMAND = """
from sdcompress.cli import main
main(["generate", sys.argv[1], "a red circle", "--steps", "2", "-o", sys.argv[2]])
"""


@pytest.mark.parametrize("use", [LIBRARY, COMMAND], ids=["library", "command line"])
def test_a_picture_is_drawn_with_the_base_installation_alone(tmp_path: Path, use: str) -> None:
    folder = write_toy_model(tmp_path / "model")
    command = [sys.executable, "-W", "error", "-c", BLOCK + use]
    command += [str(folder), str(tmp_path / "out.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.png").is_file()
