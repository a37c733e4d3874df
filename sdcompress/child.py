"""Runs :mod:`sdcompress.runtime.footprint` in a process of its own and brings its figures back.

Needs the runtime's packages only.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from sdcompress.errors import EvaluationError

Watching = Callable[[int], AbstractContextManager[Any]]  # entered with the child's process number


def measure_in_child(job: Mapping[str, Any], watching: Watching | None = None) -> dict[str, Any]:
    """The child's figures for a job; `watching` is entered while it runs.

    Raises EvaluationError with the child's last words when it fails.
    """
    child = subprocess.Popen(
        [sys.executable, "-m", "sdcompress.runtime.footprint"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        with watching(child.pid) if watching else nullcontext():
            output, faults = child.communicate(json.dumps(job))
    finally:
        child.kill()
        child.wait()
    if child.returncode != 0:
        last = faults.strip().splitlines()[-1] if faults.strip() else "no message"
        raise EvaluationError(f"measuring {job['folder']} failed (exit {child.returncode}): {last}")
    figures: dict[str, Any] = json.loads(output.splitlines()[-1])
    return figures
