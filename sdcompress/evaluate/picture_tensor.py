"""Pictures as tensors, for the metrics that look at them."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def load_tensor(file: Path) -> Any:
    """Returns a picture as float32 [1, 3, h, w], 0..255."""
    with Image.open(file) as image:
        return as_tensor(np.array(image.convert("RGB")))


def as_tensor(pixels: NDArray[np.uint8]) -> Any:
    """Returns a picture uint8 [h, w, 3] as float32 [1, 3, h, w], 0..255."""
    import torch

    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
