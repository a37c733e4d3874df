"""Keeps the libraries' chatter off the terminal, where our own progress is shown."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silences log records below ERROR, tracer warnings and weight-loading bars inside the block.

    The records are advice to developers (deprecations, missing torchvision, traced constants);
    faults still raise. ``sdcompress --verbose`` leaves them on.
    """
    if logging.getLogger("sdcompress").isEnabledFor(logging.DEBUG):
        yield
        return
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        import datasets
        from diffusers.utils import logging as diffusers_logging
        from transformers.utils import logging as transformers_logging

        datasets.disable_progress_bars()
        diffusers_logging.disable_progress_bar()
        transformers_logging.disable_progress_bar()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
