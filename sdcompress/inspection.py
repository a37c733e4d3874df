"""Shows what a bundle or an IR is made of: its layers by precision and its sizes."""

from collections.abc import Iterator
from pathlib import Path

from sdcompress.ir import IR_NAME, xml_bytes
from sdcompress.precision import Layer, count_by_precision, layers_of
from sdcompress.runtime import BundleError


def describe(path: Path, *, every_layer: bool = False) -> Iterator[str]:
    """Yields the lines of a table with one row for each IR under `path`.

    `path` is a pipeline folder, a component's folder or an .xml file. Raises BundleError when no
    IR is there.
    """
    files = _ir_files(path)
    yield f"{'component':<14} {'size':>10}  {'weights':>9}  layers by precision"
    total = 0
    for file in files:
        layers = layers_of(file)
        size = xml_bytes(file)
        total += size
        parameters = sum(layer.parameters for layer in layers) / 1e6
        counts = ", ".join(f"{n} x {name}" for name, n in count_by_precision(layers).items())
        yield f"{file.parent.name:<14} {size / 1e6:>7.1f} MB  {parameters:>7.2f} M  {counts}"
        unpacked = sum(_is_unpacked(layer) for layer in layers)
        if unpacked:
            yield (
                f"  {unpacked} compressed convolutions have floating-point inputs: OpenVINO's CPU "
                "plugin unpacks their weights, so they take no less memory (--executed shows it)"
            )
        if every_layer:
            yield from (_layer_line(layer) for layer in layers)
    if len(files) > 1:
        yield f"{'total':<14} {total / 1e6:>7.1f} MB"


def _is_unpacked(layer: Layer) -> bool:
    return "Convolution" in layer.type and layer.precision in ("int8 weights", "int4 weights")


def _ir_files(path: Path) -> list[Path]:
    if path.is_file():
        if path.suffix != ".xml":
            raise BundleError(f"{path}: an IR is named by its .xml file")
        return [path]
    files = [path / IR_NAME] if (path / IR_NAME).is_file() else sorted(path.glob(f"*/{IR_NAME}"))
    if not files:
        raise BundleError(f"{path}: holds no {IR_NAME}, nor do its folders")
    return files


def _layer_line(layer: Layer) -> str:
    return f"  {layer.precision:<13} {layer.parameters:>10,}  {layer.type:<12} {layer.name}"
