"""Where a report was made: processor, memory, system, packages, execution precisions."""

import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import psutil

from sdcompress.processor import processor_brand, processor_flags

_PACKAGES = (
    "sdcompress",
    "openvino",
    "nncf",
    "optimum-intel",
    "torch",
    "transformers",
    "diffusers",
    "torchmetrics",
    "datasets",
    "numpy",
)
_TELLING_FLAGS = ("avx2", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")


def describe_environment(
    device: str, execution_precisions: Mapping[str, Mapping[str, str]]
) -> dict[str, Any]:
    """Returns the environment as plain JSON types; memory in bytes."""
    flags = processor_flags()
    return {
        "cpu": processor_brand(),
        "cores": psutil.cpu_count(logical=False) or os.cpu_count(),
        "threads": os.cpu_count(),
        "instruction_sets": [flag for flag in _TELLING_FLAGS if flag in flags],
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
        "python": platform.python_version(),
        "device": device,
        "packages": {name: version(name) for name in _PACKAGES},
        "execution_precisions": {side: dict(parts) for side, parts in execution_precisions.items()},
    }
