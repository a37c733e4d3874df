"""The runtime that ships: draws pictures from a bundle with numpy, openvino, tokenizers, pillow.

It imports nothing from the rest of the package, and also runs baseline and candidate when they are
compared, so that both are judged by the engine that users get.
"""

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
    "save_png",
    "verify",
    "write_manifest",
]
