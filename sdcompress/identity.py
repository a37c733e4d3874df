"""Names a pipeline by its files: what is known of a model is found again wherever it lies."""

from collections.abc import Mapping
from pathlib import Path

from sdcompress.ir import MODEL, TINY_DECODER, pipeline_files
from sdcompress.runtime import hash_files
from sdcompress.store import key_of, read_record, write_record

BASELINE, COMPRESSED = "baseline", "compressed"  # the two sides of every evaluation
_HASHES = "hashes.json"


def hash_pipeline(folder: Path) -> dict[str, str]:
    """SHA-256 of each file that drawing needs, by its name in the folder."""
    names = [file.relative_to(folder).as_posix() for file in pipeline_files(folder)]
    return {name: record.sha256 for name, record in hash_files(folder, names).items()}


def key_of_files(hashes: Mapping[str, str]) -> str:
    """The key of a pipeline with these files; those that drawing does not need do not matter.

    The tiny decoder, which only some pictures need, has a key of its own.
    """
    return key_of(files={name: one for name, one in hashes.items() if name.split("/")[0] in MODEL})


def key_of_tiny_decoder(hashes: Mapping[str, str]) -> dict[str, str]:
    """The key of the tiny decoder among a pipeline's files, under its name, if there is one."""
    found = {name: one for name, one in hashes.items() if name.startswith(f"{TINY_DECODER}/")}
    return {TINY_DECODER: key_of(files=found)} if found else {}


def keep_hashes(folder: Path) -> None:
    """Hashes the files of a finished stage and leaves the hashes beside them."""
    write_record(folder / _HASHES, dict[str, str], hash_pipeline(folder))


def kept_hashes(folder: Path) -> dict[str, str]:
    """Reads what `keep_hashes` left."""
    return read_record(folder / _HASHES, dict[str, str])
