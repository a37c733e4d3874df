"""Where a component's IR lies, and how large it is."""

from pathlib import Path

IR_NAME = "openvino_model.xml"


def ir_bytes(component_folder: Path) -> int:
    """Returns the bytes of a component's .xml and .bin."""
    xml = component_folder / IR_NAME
    return xml.stat().st_size + xml.with_suffix(".bin").stat().st_size
