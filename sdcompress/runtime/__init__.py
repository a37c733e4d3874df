"""The runtime that ships: draws pictures from a bundle with numpy, openvino, tokenizers, pillow.

It imports nothing from the rest of the package, and also runs baseline and candidate when they are
compared, so that both are judged by the engine that users get.

Exports are resolved on first use, so that its errors can be had without loading OpenVINO.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdcompress.runtime.archive import pack, unpack
    from sdcompress.runtime.denoise import OnStep, Step, Unet
    from sdcompress.runtime.device import require_device
    from sdcompress.runtime.economy import Economy
    from sdcompress.runtime.embeddings import EmbeddingCache
    from sdcompress.runtime.errors import (
        BundleError,
        CancelledError,
        DeviceError,
        InputError,
        NotFiniteError,
        SdcompressError,
    )
    from sdcompress.runtime.image import open_image, save_png
    from sdcompress.runtime.manifest import (
        FileRecord,
        Manifest,
        hash_files,
        read_manifest,
        verify,
        write_manifest,
    )
    from sdcompress.runtime.phases import draw_in_phases
    from sdcompress.runtime.pipeline import Pipeline
    from sdcompress.runtime.schedulers import SCHEDULERS, require_scheduler
    from sdcompress.runtime.settings import Job, Settings
    from sdcompress.runtime.signature import require_signature, sign
    from sdcompress.runtime.streaming import stream

__all__ = [
    "SCHEDULERS",
    "BundleError",
    "CancelledError",
    "DeviceError",
    "Economy",
    "EmbeddingCache",
    "FileRecord",
    "InputError",
    "Job",
    "Manifest",
    "NotFiniteError",
    "OnStep",
    "Pipeline",
    "SdcompressError",
    "Settings",
    "Step",
    "Unet",
    "draw_in_phases",
    "hash_files",
    "open_image",
    "pack",
    "read_manifest",
    "require_device",
    "require_scheduler",
    "require_signature",
    "save_png",
    "sign",
    "stream",
    "unpack",
    "verify",
    "write_manifest",
]

_EXPORTS = {
    "SCHEDULERS": "sdcompress.runtime.schedulers",
    "BundleError": "sdcompress.runtime.errors",
    "CancelledError": "sdcompress.runtime.errors",
    "DeviceError": "sdcompress.runtime.errors",
    "Economy": "sdcompress.runtime.economy",
    "EmbeddingCache": "sdcompress.runtime.embeddings",
    "FileRecord": "sdcompress.runtime.manifest",
    "InputError": "sdcompress.runtime.errors",
    "Job": "sdcompress.runtime.settings",
    "Manifest": "sdcompress.runtime.manifest",
    "NotFiniteError": "sdcompress.runtime.errors",
    "OnStep": "sdcompress.runtime.denoise",
    "Pipeline": "sdcompress.runtime.pipeline",
    "SdcompressError": "sdcompress.runtime.errors",
    "Settings": "sdcompress.runtime.settings",
    "Step": "sdcompress.runtime.denoise",
    "Unet": "sdcompress.runtime.denoise",
    "draw_in_phases": "sdcompress.runtime.phases",
    "hash_files": "sdcompress.runtime.manifest",
    "open_image": "sdcompress.runtime.image",
    "pack": "sdcompress.runtime.archive",
    "read_manifest": "sdcompress.runtime.manifest",
    "require_device": "sdcompress.runtime.device",
    "require_scheduler": "sdcompress.runtime.schedulers",
    "require_signature": "sdcompress.runtime.signature",
    "save_png": "sdcompress.runtime.image",
    "sign": "sdcompress.runtime.signature",
    "stream": "sdcompress.runtime.streaming",
    "unpack": "sdcompress.runtime.archive",
    "verify": "sdcompress.runtime.manifest",
    "write_manifest": "sdcompress.runtime.manifest",
}


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'sdcompress.runtime' has no attribute {name!r}")
