"""Where a pipeline's parts lie, and how large they are."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sdcompress.errors import StorageError

IR_NAME = "openvino_model.xml"
SHARED = ("model_index.json", "scheduler", "tokenizer")  # what compression leaves alone
MODEL = (*SHARED, "text_encoder", "unet", "vae_decoder", "vae_encoder")
TINY_DECODER = "tiny_decoder"  # which not every pipeline has, and no baseline
PARTS = (*MODEL, TINY_DECODER)


def ir_bytes(component_folder: Path) -> int:
    """Returns the bytes of a component's .xml and .bin."""
    return xml_bytes(component_folder / IR_NAME)


def xml_bytes(xml: Path) -> int:
    """Returns the bytes of an IR named by its .xml, the .bin beside it included."""
    return xml.stat().st_size + xml.with_suffix(".bin").stat().st_size


def pipeline_files(folder: Path) -> Iterator[Path]:
    """All that drawing needs; a report beside it does not count."""
    files = (file for part in PARTS for file in (folder / part, *(folder / part).rglob("*")))
    return (file for file in files if file.is_file())


def pipeline_bytes(folder: Path) -> int:
    """Returns the bytes of all that drawing needs."""
    return sum(file.stat().st_size for file in pipeline_files(folder))


@contextmanager
def writing_ir(folder: Path) -> Iterator[None]:
    """Says what OpenVINO's "iostream error" means. Raises StorageError for it."""
    try:
        yield
    except RuntimeError as error:
        if "iostream" not in str(error):
            raise
        free = shutil.disk_usage(folder).free
        raise StorageError(
            f"{folder}: OpenVINO could not write the IR there; {free / 1e6:.0f} MB are free on "
            "that disk. Free some space, or write to another disk with --output"
        ) from error
