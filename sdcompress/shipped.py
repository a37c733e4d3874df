"""Finds the recipes and prompt sets that ship with the package."""

from pathlib import Path

_PACKAGE = Path(__file__).parent


def shipped_folder(name: str) -> Path:
    """Returns the folder `recipes` or `calibration`, in an installed package or a checkout."""
    installed = _PACKAGE / "shipped" / name
    return installed if installed.is_dir() else _PACKAGE.parent / name
