"""Ed25519 signatures over a bundle's manifest, and thereby over every file in it.

Keys are PEM files, as `openssl genpkey -algorithm ed25519` writes them. Needs the package
`cryptography`, which the extra `signing` installs.
"""

import base64
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcompress.runtime.errors import BundleError, InputError, SdcompressError
from sdcompress.runtime.layout import read_json, write_json
from sdcompress.runtime.manifest import FILE_NAME as MANIFEST
from sdcompress.runtime.manifest import SIGNATURE, require_whole

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

_ALGORITHM = "ed25519"


def sign(folder: Path, private_key: Path) -> Path:
    """Write `manifest.sig` beside the manifest of an intact bundle.

    Raises InputError for a key of another kind, BundleError if the bundle is not intact.
    """
    key: Ed25519PrivateKey = _load_key(private_key, public=False)
    require_whole(folder)
    signature = key.sign((folder / MANIFEST).read_bytes())
    values = {"algorithm": _ALGORITHM, "signature": base64.b64encode(signature).decode()}
    path = folder / SIGNATURE
    write_json(path, values)
    return path


def require_signature(folder: Path, public_key: Path) -> None:
    """Raise BundleError unless the manifest was signed with the private half of `public_key`."""
    key: Ed25519PublicKey = _load_key(public_key, public=True)
    from cryptography.exceptions import InvalidSignature

    path = folder / SIGNATURE
    if not path.is_file():
        raise BundleError(f"{folder} is not signed: it has no {SIGNATURE}.")
    values = read_json(path)
    try:
        signature = base64.b64decode(str(values.get("signature")), validate=True)
        key.verify(signature, (folder / MANIFEST).read_bytes())
    except (ValueError, InvalidSignature):
        raise BundleError(
            f"{folder}: {SIGNATURE} was not made for this {MANIFEST} with the private key that "
            f"belongs to {public_key}. Do not use the bundle."
        ) from None


def _load_key(path: Path, *, public: bool) -> Any:
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ModuleNotFoundError as fault:
        raise SdcompressError(
            "Signatures need the package cryptography, which the base install leaves out: "
            'pip install "sdcompress[signing]"'
        ) from fault
    kind = "public" if public else "private"
    try:
        text = path.read_bytes()
        key = (
            serialization.load_pem_public_key(text)
            if public
            else serialization.load_pem_private_key(text, password=None)
        )
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as fault:
        raise InputError(f"{path} cannot be read as a {kind} key in PEM form: {fault}.") from fault
    wanted = ed25519.Ed25519PublicKey if public else ed25519.Ed25519PrivateKey
    if not isinstance(key, wanted):
        raise InputError(f"{path} is no Ed25519 {kind} key but {type(key).__name__}.")
    return key
