"""What the memory of each compression stage is made of: ``make bench-compress``. Linux only.

Runs our tasks of benchmarks/compression_tasks.py once more and reads, four times a second, which
mappings the resident pages of the processes belong to. Prints the split at the moment of the
highest total.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil

TASKS = ("convert", "pipeline", "record", "int8_weights", "ranges", "int8_again")
KINDS = ("mapped weights", "libraries", "anonymous")
_SECONDS = 0.25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks/sd21"))
    parser.add_argument("--model", type=Path, help="diffusers folder  [default: WORK/model]")
    options = parser.parse_args()
    if not sys.platform.startswith("linux"):
        raise SystemExit("this reads /proc/PID/smaps, which only Linux has")
    work = options.work.resolve()
    model = (options.model or work / "model").resolve()
    print("\n| stage | peak | " + " | ".join(KINDS) + " |")
    print("|---" * (len(KINDS) + 2) + "|")
    for task in TASKS:
        split = _peak(_command(task, work, model))
        row = " | ".join(f"{split[kind] / 1e9:.2f} GB" for kind in KINDS)
        print(f"| {task} | {split.total() / 1e9:.2f} GB | {row} |", flush=True)


def _command(task: str, work: Path, model: Path) -> list[str]:
    if task == "convert":
        target = work / "memory_ir"
        shutil.rmtree(target, ignore_errors=True)
        return [sys.executable, "-m", "sdcompress", "convert", str(model), str(target)]
    script = Path(__file__).with_name("compression_tasks.py")
    return [sys.executable, str(script), str(work), task]


def _peak(command: list[str]) -> Counter[str]:
    """The resident bytes by kind of mapping, of all processes, when they were the most."""
    most: Counter[str] = Counter()
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        now: Counter[str] = Counter()
        try:
            for one in (watched, *watched.children(recursive=True)):
                now += _resident(one.pid)
        except (psutil.Error, OSError):
            continue
        if now.total() > most.total():
            most = now
        time.sleep(_SECONDS)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed with exit code {process.returncode}")
    return most


def _resident(pid: int) -> Counter[str]:
    found: Counter[str] = Counter()
    kind = KINDS[2]
    for line in Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8").splitlines():
        field, *values = line.split()
        if not field.endswith(":"):  # the head of a mapping; its file, if any, comes last
            name = values[-1] if len(values) > 4 else ""
            kind = _kind(name)
        elif field == "Rss:":
            found[kind] += int(values[0]) * 1024
    return found


def _kind(name: str) -> str:
    if name.endswith((".bin", ".safetensors")):
        return KINDS[0]
    return KINDS[1] if name.startswith("/") else KINDS[2]


if __name__ == "__main__":
    main()
