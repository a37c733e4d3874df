"""Stages in a process of their own: results, faults and deaths all come back."""

import os
import signal
import sys
from pathlib import Path

import pytest

from sdcompress.errors import CalibrationError, InterruptedStageError
from sdcompress.isolation import run_isolated
from sdcompress.progress import Advance


def multiply(first: int, second: int, advance: Advance) -> tuple[int, int]:
    print("chatter that must not disturb the messages")  # noqa: T201
    advance(1, 2)
    advance(2, 2)
    return first * second, os.getpid()


def fail(kind: str, advance: Advance) -> None:
    if kind == "ours":
        raise CalibrationError("ranges are not finite")
    if kind == "disk":
        raise OSError(28, "No space left on device")
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "native":
        print("something native gave up", file=sys.stderr, flush=True)  # noqa: T201
        os._exit(7)
    raise ZeroDivisionError("a mistake in the code")


def test_result_and_progress_come_from_another_process() -> None:
    seen: list[tuple[int, int]] = []
    product, process = run_isolated(
        multiply, 6, 7, on_progress=lambda done, total: seen.append((done, total))
    )
    assert product == 42
    assert process != os.getpid()
    assert seen == [(1, 2), (2, 2)]


def test_faults_of_users_and_disks_keep_their_type() -> None:
    with pytest.raises(CalibrationError, match="not finite"):
        run_isolated(fail, "ours", on_progress=lambda *_: None)
    with pytest.raises(OSError, match="No space left"):
        run_isolated(fail, "disk", on_progress=lambda *_: None)


def test_a_mistake_in_the_code_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError, match="a mistake in the code") as caught:
        run_isolated(fail, "other", on_progress=lambda *_: None)
    assert "test_isolation.py" in caught.value.__notes__[0]


def test_a_stage_that_just_ends_is_told_with_its_last_words() -> None:
    with pytest.raises(InterruptedStageError, match="exit code 7: something native gave up"):
        run_isolated(fail, "native", on_progress=lambda *_: None)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no signals")
def test_a_killed_stage_says_what_most_likely_happened() -> None:
    with pytest.raises(InterruptedStageError, match="memory ran out"):
        run_isolated(fail, "killed", on_progress=lambda *_: None)


def test_the_stage_ends_when_nobody_waits_for_it(tmp_path: Path) -> None:
    import pickle
    import subprocess

    child = subprocess.Popen(
        [sys.executable, "-m", "sdcompress.isolation"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert child.stdin
    import time

    pickle.dump(sys.path, child.stdin)
    pickle.dump((time.sleep, (60,)), child.stdin)
    child.stdin.close()
    assert child.wait(timeout=30) == 1
