"""Compress Stable Diffusion for Intel hardware, prove the pictures held, ship the result.

The public surface is what this module exports; everything else is free to change::

    recipe = sdcompress.load_recipe("recipes/unet_int8.yaml")
    run = sdcompress.quantize(recipe, output="build/unet_int8")
    image = sdcompress.Pipeline.load(run.bundle).generate("a photo of a green star", seed=1)

Exports are resolved on first use, so importing the package loads neither torch nor OpenVINO.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from sdcompress.assessment import evaluate
    from sdcompress.recipe import load_recipe
    from sdcompress.report.comparison import compare
    from sdcompress.runtime import Pipeline
    from sdcompress.searching import search
    from sdcompress.workflow import quantize

__all__ = ["Pipeline", "compare", "evaluate", "load_recipe", "quantize", "search"]

_EXPORTS = {
    "Pipeline": "sdcompress.runtime",
    "compare": "sdcompress.report.comparison",
    "evaluate": "sdcompress.assessment",
    "load_recipe": "sdcompress.recipe",
    "quantize": "sdcompress.workflow",
    "search": "sdcompress.searching",
}


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'sdcompress' has no attribute {name!r}")
