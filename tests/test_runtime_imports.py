"""The runtime stands alone: it draws a picture in an interpreter that refuses everything else."""

import subprocess
import sys
from pathlib import Path

from toy_model import write_toy_model

# Only what the base installation brings, and the runtime's own room, may be imported.
DRAW = """
import sys

class Blocker:
    banned = {"torch", "diffusers", "transformers", "nncf", "optimum", "pydantic", "yaml", "scipy",
              "datasets", "huggingface_hub", "safetensors", "torchmetrics", "psutil", "rich",
              "openvino_tokenizers", "openvino_genai"}

    def find_spec(self, name, path=None, target=None):
        root = name.partition(".")[0]
        inside = name in ("sdcompress", "sdcompress.runtime") or not name.startswith("sdcompress.")
        if root in self.banned or not (inside or name.startswith("sdcompress.runtime.")):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
from sdcompress.runtime import Pipeline, Settings, save_png
picture = Pipeline.load(sys.argv[1]).generate("a red circle", settings=Settings(steps=2))
save_png(picture, sys.argv[2], {"prompt": "a red circle"})
loaded = {name.partition(".")[0] for name in sys.modules}
assert not loaded & Blocker.banned, loaded & Blocker.banned
"""


def test_the_runtime_draws_with_the_base_installation_alone(tmp_path: Path) -> None:
    folder = write_toy_model(tmp_path / "model")
    command = [sys.executable, "-W", "error", "-c", DRAW, str(folder), str(tmp_path / "out.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.png").is_file()
