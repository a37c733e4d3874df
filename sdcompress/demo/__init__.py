"""The built-in demo model: a miniature of Stable Diffusion 2.1 that was really trained.

It draws one or two coloured shapes from a caption, small enough to ship and to run anywhere, and
good enough that damage shows. MODEL_CARD.md says how it was made and how well it does.
"""

from pathlib import Path

_FOLDER = Path(__file__).parent
MODEL_DIR = _FOLDER / "model"
CLIP_DIR = _FOLDER / "clip"
TINY_DECODER_DIR = _FOLDER / "tiny_decoder"
