"""How long it takes from starting the program to the first picture on disk.

Needs the runtime's packages only.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sdcompress.errors import EvaluationError


@dataclass(frozen=True)
class Start:
    """Seconds from process start to the first picture, and what made the warm one quicker.

    `cold` compiles everything, `warm` finds the compiled models of an earlier run, of `kept_bytes`,
    and the encoded prompt if the bundle has a manifest.
    """

    cold: float
    warm: float
    kept_bytes: int


def measure_start(
    bundle: Path, prompt: str, steps: int, device: str, precision: str | None
) -> Start:
    """Runs ``sdcompress generate`` three times. Raises EvaluationError when it fails."""
    with tempfile.TemporaryDirectory() as scratch:
        kept = Path(scratch) / "compiled"
        command = [
            sys.executable, "-m", "sdcompress", "generate", str(bundle), prompt,
            "--steps", str(steps), "--device", device, "--output", f"{scratch}/picture.png",
            *(("--precision", precision) if precision else ()),
        ]  # fmt: skip
        own = os.environ | {"SDCOMPRESS_CACHE": f"{scratch}/cache"}  # not what the user's knows
        cold = _seconds([*command, "--verify", "never"], own)  # hashing is not what is compared
        caching = [*command, "--cache-dir", str(kept)]
        _seconds(caching, own)
        warm = _seconds(caching, own)
        files = [file for file in kept.rglob("*") if file.is_file()]
        return Start(cold, warm, sum(file.stat().st_size for file in files))


def _seconds(command: list[str], environment: Mapping[str, str]) -> float:
    start = time.perf_counter()
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    seconds = time.perf_counter() - start
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise EvaluationError(f"generate failed (exit {done.returncode}): {last}")
    return seconds


def describe(start: Start) -> str:
    """In words."""
    return (
        f"start to first picture: {start.cold:.1f} s; again, with --cache-dir: {start.warm:.1f} s, "
        f"x {start.warm / start.cold:.2f} ({start.kept_bytes / 1e6:,.0f} MB kept)"
    )
