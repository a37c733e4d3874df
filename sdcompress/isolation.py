"""Runs a heavy stage in a process of its own, so that all of its memory is given back at its end.

What PyTorch, NNCF and OpenVINO keep after a stage would otherwise add to the next stage's peak.
The child is a fresh interpreter, ``python -m sdcompress.isolation``: forking copies locks in
unknown states, and spawning would import the user's script again.
"""

import logging
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from typing import IO, Any, TypeVar, cast

import psutil

from sdcompress.errors import InterruptedStageError
from sdcompress.progress import Advance

T = TypeVar("T")
# OpenVINO and NNCF fork the process for each event they report, and without a network such a copy
# waits for minutes and keeps the memory of the stage. These variables are how they are told not to.
_NO_TELEMETRY = {"CI": "true", "NNCF_CI": "1"}
_OUT_OF_MEMORY = (
    "memory ran out. Close other programs or use a machine with more memory; what is finished is "
    "kept, so start the same command again"
)


def run_isolated(function: Callable[..., T], *arguments: Any, on_progress: Advance) -> T:
    """Returns ``function(*arguments, advance)``, called in a fresh process.

    Function, arguments and result must be picklable; the function is found by its import path.
    Raises what the function raises, and InterruptedStageError when the process dies.
    """
    verbose = logging.getLogger("sdcompress").isEnabledFor(logging.DEBUG)
    with (
        tempfile.TemporaryFile() as faults,
        subprocess.Popen(
            [sys.executable, "-m", "sdcompress.isolation"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if verbose else faults,
            env=os.environ | _NO_TELEMETRY,
        ) as child,
    ):
        try:
            _send(child.stdin, (sys.path, verbose, os.getpid()))
            _send(child.stdin, (function, arguments))
            outcome = _listen(child, on_progress)
        finally:
            died_by_itself = child.poll() is not None
            child.kill()
        if outcome is None:
            faults.seek(0)
            code = child.wait()
            if not died_by_itself:  # it lives, but what it says cannot be understood
                code = 0
            raise InterruptedStageError(_obituary(function.__name__, code, faults.read()))
    kind, value = outcome
    if kind == "fault":
        raise value
    return cast(T, value)


def _listen(child: "subprocess.Popen[bytes]", on_progress: Advance) -> tuple[str, Any] | None:
    """Passes progress on until the outcome comes; None when the child died without one."""
    stream = cast(IO[bytes], child.stdout)
    while True:
        try:
            kind, value = pickle.load(stream)  # noqa: S301  # from our own child
        except EOFError:
            child.wait()
            return None
        except pickle.UnpicklingError:
            return None
        if kind != "progress":
            return kind, value
        on_progress(*value)


def _obituary(name: str, code: int, words: bytes) -> str:
    last = words.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
    if code in (-9, 137):
        return f"{name} was killed, most likely because {_OUT_OF_MEMORY}"
    return f"{name} ended with exit code {code}: {last[0]}"


def _send(stream: IO[bytes] | None, message: Any) -> None:
    """Writes a message; a reader that is gone is noticed where its answer is awaited."""
    try:
        pickle.dump(message, cast(IO[bytes], stream))
        cast(IO[bytes], stream).flush()
    except OSError:
        return


def _main() -> None:
    # Libraries print: their words go to standard error, the pipe is for messages only.
    messages = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    sys.path[:], verbose, parent = pickle.load(sys.stdin.buffer)  # noqa: S301  # our own parent
    level = logging.DEBUG if verbose else logging.WARNING
    logging.basicConfig(level=level)
    logging.getLogger("sdcompress").setLevel(level)
    threading.Thread(target=_leave_with, args=(psutil.Process(parent),), daemon=True).start()
    function, arguments = pickle.load(sys.stdin.buffer)  # noqa: S301  # from our own parent

    def advance(done: int, total: int) -> None:
        _send(messages, ("progress", (done, total)))

    try:
        outcome = ("result", function(*arguments, advance))
    except MemoryError:
        outcome = ("fault", InterruptedStageError(f"{function.__name__} ended: {_OUT_OF_MEMORY}"))
    except Exception as error:  # noqa: BLE001  # the parent decides what to do with it
        outcome = ("fault", _portable(error, function.__name__))
    _send(messages, outcome)


def _portable(error: Exception, name: str) -> Exception:
    """The error with its traceback as a note, or what it says if it cannot be sent."""
    words = f"In the process of {name}:\n{traceback.format_exc()}"
    error.add_note(words)
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301  # made here
    except Exception:  # noqa: BLE001  # whatever its own code does
        return RuntimeError(f"{type(error).__name__}: {error}\n{words}")
    return error


def _leave_with(parent: psutil.Process) -> None:
    """Ends this process when the parent is gone, however it went: nobody waits for the result."""
    original = os.getppid()
    while parent.is_running() and os.getppid() == original:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    _main()
