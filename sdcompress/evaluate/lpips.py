"""Learned perceptual distance between the pictures of a pair, where its network is at hand.

LPIPS (Zhang et al., arXiv:1801.03924) needs the trained weights of a feature network, which cannot
ship with this package. They are given as an OpenVINO IR or ONNX file.
"""

from pathlib import Path
from typing import Any

from sdcompress.errors import EvaluationError
from sdcompress.evaluate.metrics import Metric
from sdcompress.evaluate.network import Network


def metric(made_by: str) -> Metric:
    """The metric's card for the network that `made_by` names."""
    return Metric(
        name="lpips",
        title="LPIPS",
        kind="pair",
        better="lower",
        unit="",
        definition="distance of the two pictures in a feature network (Zhang et al., "
        "arXiv:1801.03924), pictures scaled to -1..1; 0 for identical pictures",
        low=0.0,
        high=None,
        made_by=made_by,
        digits=4,
    )


class Lpips:
    """A network that takes two pictures float32 [1, 3, h, w] in -1..1 and returns their distance.

    Raises EvaluationError when the file is no such network.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._network = Network(file, "evaluate.lpips", inputs=2)

    def __call__(self, baseline: Any, candidate: Any) -> float:
        """The distance of two pictures, tensors float32 [1, 3, h, w], 0..255."""
        found = self._network([one.numpy() / 127.5 - 1 for one in (baseline, candidate)])
        if found.size != 1:
            raise EvaluationError(
                f"evaluate.lpips: {self._file} returns {found.shape} instead of one distance"
            )
        return float(found.reshape(()))
