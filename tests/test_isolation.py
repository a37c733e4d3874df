"""Stages in a process of their own: results, faults and deaths all come back."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
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


class StubbornError(Exception):
    """Cannot be unpickled: its constructor wants more than its message."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first)


def raise_stubborn(advance: Advance) -> None:
    raise StubbornError("what it says", "and what it hides")


def test_a_fault_that_cannot_travel_arrives_in_words() -> None:
    with pytest.raises(RuntimeError, match="StubbornError: what it says"):
        run_isolated(raise_stubborn, on_progress=lambda *_: None)


def run_out(advance: Advance) -> None:
    raise MemoryError


def test_running_out_of_memory_is_told_in_words() -> None:
    with pytest.raises(InterruptedStageError, match="memory ran out"):
        run_isolated(run_out, on_progress=lambda *_: None)


def work_for_long(advance: Advance) -> None:
    advance(os.getpid(), 0)
    time.sleep(120)


def test_a_fault_while_showing_progress_ends_the_stage() -> None:
    pids: list[int] = []

    def show(pid: int, _total: int) -> None:
        pids.append(pid)
        raise BrokenPipeError("the terminal is gone")

    started = time.monotonic()
    with pytest.raises(BrokenPipeError):
        run_isolated(work_for_long, on_progress=show)
    assert time.monotonic() - started < 60
    assert not psutil.pid_exists(pids[0])


@pytest.mark.skipif(sys.platform == "win32", reason="there are no signals")
def test_the_stage_ends_when_its_parent_is_killed() -> None:
    """However the run goes, no orphan goes on eating memory."""
    code = (
        "from sdcompress.isolation import run_isolated; import test_isolation as t;"
        "run_isolated(t.work_for_long, on_progress=lambda pid, _: print(pid, flush=True))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert parent.stdout
    stage = psutil.Process(int(parent.stdout.readline()))
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    stage.wait(timeout=20)
