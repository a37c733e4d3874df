"""Runs a heavy stage in a process of its own, so that all of its memory is given back at its end.

What PyTorch, NNCF and OpenVINO keep after a stage would otherwise add to the next stage's peak.
The child is a fresh interpreter, ``python -m sdcompress.isolation``: forking copies locks in
unknown states, and spawning would import the user's script again.
"""

import os
import pickle
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from typing import IO, Any, TypeVar, cast

from sdcompress.errors import InterruptedStageError
from sdcompress.progress import Advance

T = TypeVar("T")
# OpenVINO and NNCF fork the process for each event they report, and without a network such a copy
# waits for minutes and keeps the memory of the stage. These variables are how they are told not to.
_NO_TELEMETRY = {"CI": "true", "NNCF_CI": "1"}


def run_isolated(function: Callable[..., T], *arguments: Any, on_progress: Advance) -> T:
    """Returns ``function(*arguments, advance)``, called in a fresh process.

    Function, arguments and result must be picklable; the function is found by its import path.
    Raises what the function raises, and InterruptedStageError when the process dies.
    """
    command, pipe = [sys.executable, "-m", "sdcompress.isolation"], subprocess.PIPE
    with (
        tempfile.TemporaryFile() as faults,
        subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=faults, env=os.environ | _NO_TELEMETRY
        ) as child,
    ):
        try:
            outcome = _converse(child, (function, arguments), on_progress)
            code = child.wait() if outcome is None else 0
        finally:
            child.kill()
        if outcome is None:
            faults.seek(0)
            raise InterruptedStageError(_obituary(function.__name__, code, faults.read()))
    kind, value = outcome
    if kind == "fault":
        raise value
    return cast(T, value)


def _converse(
    child: subprocess.Popen[bytes], job: tuple[Any, ...], on_progress: Advance
) -> tuple[str, Any] | None:
    """Sends the job and passes progress on until its outcome comes; None when the child died."""
    to_child, from_child = cast(IO[bytes], child.stdin), cast(IO[bytes], child.stdout)
    try:
        _send(to_child, sys.path)  # the child has to find the function's module
        _send(to_child, job)
        while True:
            kind, value = pickle.load(from_child)  # noqa: S301  # from our own child
            if kind != "progress":
                return kind, value
            on_progress(*value)
    except (EOFError, BrokenPipeError, pickle.UnpicklingError):
        return None


def _obituary(name: str, code: int, words: bytes) -> str:
    last = words.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
    if code in (-9, 137):
        return (
            f"{name} was killed, most likely because memory ran out. Close other programs or use a "
            "machine with more memory; what is finished is kept, so start the same command again"
        )
    return f"{name} ended with exit code {code}: {last[0]}"


def _send(stream: IO[bytes], message: Any) -> None:
    pickle.dump(message, stream)
    stream.flush()


def _main() -> None:
    # Libraries print: their words go to standard error, the pipe is for messages only.
    messages = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    sys.path[:] = pickle.load(sys.stdin.buffer)  # noqa: S301  # from our own parent
    function, arguments = pickle.load(sys.stdin.buffer)  # noqa: S301  # from our own parent
    threading.Thread(target=_leave_with_parent, daemon=True).start()

    def advance(done: int, total: int) -> None:
        _send(messages, ("progress", (done, total)))

    try:
        outcome = ("result", function(*arguments, advance))
    except Exception as error:  # noqa: BLE001  # the parent decides what to do with it
        error.add_note(f"In the process of {function.__name__}:\n{traceback.format_exc()}")
        outcome = ("fault", error)
    _send(messages, outcome)


def _leave_with_parent() -> None:
    """Ends this process when the parent is gone, however it went: nobody waits for the result."""
    os.read(sys.stdin.fileno(), 1)  # nothing is sent any more, so it returns at the end only
    os._exit(1)


if __name__ == "__main__":
    _main()
