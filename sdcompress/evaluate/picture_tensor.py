"""Pictures as tensors, for the metrics that look at them."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def load_tensor(file: Path) -> Any:
    """Returns a picture as float32 [1, 3, h, w], 0..255."""
    import torch

    with Image.open(file) as image:
        pixels = np.array(image.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
