"""Work that is repeated while something else goes on."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def repeating(work: Callable[[], object], seconds: float) -> Iterator[None]:
    """Does the work at once and then every so many seconds, in a thread, while the block runs."""
    done = threading.Event()

    def repeat() -> None:
        while True:
            work()
            if done.wait(seconds):
                return

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
