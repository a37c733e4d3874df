"""Networks that users bring along as OpenVINO IR or ONNX: no code in them, and no other package."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import properties

from sdcompress.errors import EvaluationError
from sdcompress.runtime.manifest import sha256_of

Array = np.ndarray[Any, Any]


@cache
def named(file: Path) -> str:
    """A network's name for reports: two files of the same name may hold different weights."""
    weights = file.with_suffix(".bin")
    return f"{file.name}, sha256 {sha256_of(weights if weights.is_file() else file)[:12]}"


class Network:
    """A network of pictures float32 [1, 3, h, w], executed in float32 on the CPU.

    `key` is the recipe's, for messages. Raises EvaluationError when the file cannot be read, or
    takes another number of inputs.
    """

    def __init__(self, file: Path, key: str, inputs: int) -> None:
        self._what = f"{key}: {file}"
        core = ov.Core()
        try:
            model = core.read_model(file)
            options = {properties.hint.inference_precision(): ov.Type.f32}
            self._compiled = core.compile_model(model, "CPU", options)
        except RuntimeError as error:
            last = str(error).strip().splitlines()[-1]
            raise EvaluationError(
                f"{self._what} cannot be read as OpenVINO IR (.xml) or ONNX: {last}"
            ) from error
        if len(self._compiled.inputs) != inputs:
            raise EvaluationError(
                f"{self._what} has {len(self._compiled.inputs)} inputs instead of {inputs}"
            )

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height of the pictures, where the network fixes them."""
        shape = self._compiled.inputs[0].partial_shape
        if shape.rank.get_length() != 4 or shape[2].is_dynamic or shape[3].is_dynamic:
            return None
        return shape[3].get_length(), shape[2].get_length()

    def __call__(self, pictures: Sequence[Array]) -> Array:
        """The first output. Raises EvaluationError when the network cannot take the pictures."""
        try:
            found: Array = self._compiled(list(pictures))[0]
        except RuntimeError as error:
            last = str(error).strip().splitlines()[-1]
            raise EvaluationError(
                f"{self._what} cannot take a picture [1, 3, h, w]: {last}"
            ) from error
        if not np.isfinite(found).all():
            raise EvaluationError(f"{self._what} returns values that are not finite")
        return found
