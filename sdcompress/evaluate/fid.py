"""Fréchet distance between the pictures of both sides, in the features of a network at hand.

FID (Heusel et al., arXiv:1706.08500) is defined for one Inception network, whose weights cannot
ship with this package. It is computed only for a feature network that the recipe names, and the
figure carries that network's name; another is never put in its place.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sdcompress.evaluate.metrics import Metric
from sdcompress.evaluate.network import Network

Array = np.ndarray[Any, Any]


def metric(features: str) -> Metric:
    """The metric's card for the features that the distance is computed in."""
    return Metric(
        name="fid",
        title="FID",
        kind="set",
        better="lower",
        unit="",
        definition="Fréchet distance of normal distributions fitted to the features of all "
        "pictures of both sides (arXiv:1706.08500); 0 for equal sets. Large for few pictures, and "
        "comparable only for the same features and the same number of pictures",
        low=0.0,
        high=None,
        made_by=f"{features}; pictures in 0..255, resized (Pillow, bicubic) if it fixes a size",
    )


def features(files: Sequence[Path], network: Path) -> Array:
    """The features of pictures, float32 [n, d].

    `network` is an IR or ONNX file that takes float32 [1, 3, h, w], 0..255, and returns [1, d].
    Pictures are resized to the size that it fixes, if it does (Pillow, bicubic). Raises
    EvaluationError when it cannot take them.
    """
    extract = load(network)
    return np.array([extract([_fitted(file, extract.size)]).reshape(-1) for file in files])


def load(network: Path) -> Network:
    """Reads a feature network. Raises EvaluationError when the file is none."""
    return Network(network, "evaluate.fid_features", inputs=1)


def _fitted(file: Path, size: tuple[int, int] | None) -> Array:
    with Image.open(file) as image:
        picture = image.convert("RGB")
    if size and picture.size != size:
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    return np.asarray(picture, np.float32).transpose(2, 0, 1)[None]


def fid(baseline: Array, candidate: Array) -> float:
    """The distance of two sets of features, float [n, d] each, at least two rows."""
    import torch
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Passing(torch.nn.Module):
        """torchmetrics applies a network to what it is given; here these are features already."""

        num_features = baseline.shape[1]

        def forward(self, rows: Any) -> Any:
            return rows

    distance = FrechetInceptionDistance(feature=Passing())
    for rows, real in ((baseline, True), (candidate, False)):
        distance.update(torch.from_numpy(np.asarray(rows, np.float64)), real=real)
    # The root of the covariances' product leaves a rounding error of either sign.
    return max(0.0, float(distance.compute()))
