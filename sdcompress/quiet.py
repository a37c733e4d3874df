"""Keeps the libraries' chatter off the terminal, where our own progress is shown."""

import importlib
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

# What switches progress bars off, by the library that draws them.
_SWITCHES = {
    "datasets": ("datasets", "disable_progress_bars"),
    "diffusers": ("diffusers.utils.logging", "disable_progress_bar"),
    "transformers": ("transformers.utils.logging", "disable_progress_bar"),
}


@contextmanager
def quiet_libraries(*bars: str) -> Iterator[None]:
    """Silences log records below ERROR, warnings and prints inside the block.

    Those of the libraries that `bars` names, which are imported for it, draw no progress bars from
    then on. Our own progress goes to standard error, which stays open. The records are advice to
    developers (deprecations, missing torchvision, traced constants); faults still raise.
    ``sdcompress --verbose`` leaves them on.
    """
    if logging.getLogger("sdcompress").isEnabledFor(logging.DEBUG):
        yield
        return
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        for library in bars:
            module, switch = _SWITCHES[library]
            getattr(importlib.import_module(module), switch)()
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
