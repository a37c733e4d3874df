"""Keeps the libraries' chatter off the terminal, where our own progress is shown."""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silences log records below ERROR, warnings, progress bars and prints inside the block.

    Our own progress goes to standard error, which stays open. The records are advice to developers
    (deprecations, missing torchvision, traced constants); faults still raise.
    ``sdcompress --verbose`` leaves them on.
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
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
