"""The two array types that travel through the runtime."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Array = NDArray[Any]

__all__ = ["Array", "Float32", "Float64"]
