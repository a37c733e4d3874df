"""Prompts encoded before, kept on disk: the text encoder need not be loaded for them."""

import hashlib
import logging
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from sdcompress.runtime.arrays import Float32
from sdcompress.runtime.manifest import FILE_NAME as MANIFEST
from sdcompress.runtime.manifest import read_manifest
from sdcompress.runtime.settings import Settings
from sdcompress.runtime.trust import cache_folder

_MOST = 512  # embeddings that are kept; the oldest go first
_PARTS = ("text_encoder", "tokenizer")
_log = logging.getLogger(__name__)


class EmbeddingCache:
    """Embeddings float32 [77, d] of one text encoder, as one engine computes them.

    Files are named by hashes of model, engine and prompt. A file that cannot be read counts as
    absent, one that cannot be written is not kept.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self._folder = folder
        self._key = key

    @classmethod
    def of(cls, bundle: Path, engine: Iterable[str]) -> "EmbeddingCache | None":
        """The user's cache for a bundle; None without a manifest, which has the files' hashes.

        `engine` names whatever else changes what the text encoder computes.
        """
        if not (bundle / MANIFEST).is_file():
            return None
        files = read_manifest(bundle).files
        parts = [(name, one.sha256) for name, one in files.items() if name.split("/")[0] in _PARTS]
        return cls(cache_folder() / "embeddings", repr((sorted(parts), *engine)))

    def load(self, texts: Iterable[str], settings: Settings) -> dict[str, Float32]:
        """Those of the texts that are known."""
        found = {}
        for text in texts:
            file = self._file(text, settings)
            try:
                values = np.load(file, allow_pickle=False)
            except FileNotFoundError:
                continue
            except (OSError, ValueError, EOFError) as fault:
                _log.info("%s cannot be used: %s", file, fault)
                continue
            if values.dtype == np.float32 and values.ndim == 2 and np.isfinite(values).all():
                found[text] = values
                with suppress(OSError):  # where others keep them, nothing can be noted
                    os.utime(file)
        return found

    def save(self, embeddings: Mapping[str, Float32], settings: Settings) -> None:
        """Keeps them, and no more than there is room for."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for text, values in embeddings.items():
                file = self._file(text, settings)
                partial = file.with_suffix(f".{os.getpid()}.partial")
                try:
                    with partial.open("wb") as stream:
                        np.save(stream, values, allow_pickle=False)
                    partial.replace(file)
                finally:
                    partial.unlink(missing_ok=True)
            kept = sorted(self._folder.glob("*.npy"), key=lambda file: file.stat().st_mtime)
            for file in kept[:-_MOST]:
                file.unlink(missing_ok=True)
        except OSError as fault:
            _log.info("Embeddings cannot be kept in %s: %s", self._folder, fault)

    def _file(self, text: str, settings: Settings) -> Path:
        named = repr((self._key, settings.prompt_weights, text))
        return self._folder / f"{hashlib.sha256(named.encode()).hexdigest()}.npy"
