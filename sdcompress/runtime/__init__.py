"""The runtime that ships: draws pictures from a bundle with numpy, openvino, tokenizers, pillow.

It imports nothing from the rest of the package, and also runs baseline and candidate when they are
compared, so that both are judged by the engine that users get.

Exports are resolved on first use, so that its errors can be had without loading OpenVINO.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdcompress.runtime.denoise import OnStep, Unet
    from sdcompress.runtime.device import require_device
    from sdcompress.runtime.errors import (
        BundleError,
        DeviceError,
        InputError,
        NotFiniteError,
        SdcompressError,
    )
    from sdcompress.runtime.image import save_png
    from sdcompress.runtime.manifest import (
        FileRecord,
        Manifest,
        hash_files,
        read_manifest,
        verify,
        write_manifest,
    )
    from sdcompress.runtime.noise_schedule import require_scheduler
    from sdcompress.runtime.pipeline import Pipeline, Settings
    from sdcompress.runtime.schedulers import SCHEDULERS

__all__ = [
    "SCHEDULERS",
    "BundleError",
    "DeviceError",
    "FileRecord",
    "InputError",
    "Manifest",
    "NotFiniteError",
    "OnStep",
    "Pipeline",
    "SdcompressError",
    "Settings",
    "Unet",
    "hash_files",
    "read_manifest",
    "require_device",
    "require_scheduler",
    "save_png",
    "verify",
    "write_manifest",
]

_EXPORTS = {
    "BundleError": "sdcompress.runtime.errors",
    "DeviceError": "sdcompress.runtime.errors",
    "FileRecord": "sdcompress.runtime.manifest",
    "InputError": "sdcompress.runtime.errors",
    "Manifest": "sdcompress.runtime.manifest",
    "NotFiniteError": "sdcompress.runtime.errors",
    "OnStep": "sdcompress.runtime.denoise",
    "Pipeline": "sdcompress.runtime.pipeline",
    "SCHEDULERS": "sdcompress.runtime.schedulers",
    "SdcompressError": "sdcompress.runtime.errors",
    "Settings": "sdcompress.runtime.pipeline",
    "Unet": "sdcompress.runtime.denoise",
    "hash_files": "sdcompress.runtime.manifest",
    "read_manifest": "sdcompress.runtime.manifest",
    "require_device": "sdcompress.runtime.device",
    "require_scheduler": "sdcompress.runtime.noise_schedule",
    "save_png": "sdcompress.runtime.image",
    "verify": "sdcompress.runtime.manifest",
    "write_manifest": "sdcompress.runtime.manifest",
}


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'sdcompress.runtime' has no attribute {name!r}")
