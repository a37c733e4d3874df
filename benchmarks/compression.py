"""Conversion and compression of a full-size SD 2.1, against the peers: ``make bench-compress``.

Every task runs in processes of its own, ours and the peer's in turn, on the same model and the same
calibration inputs; time and the highest resident memory of all its processes are printed as a
Markdown table. A whole run takes about 40 minutes on two cores, and 20 GB of disk. Results are kept
beside the models: an interrupted run goes on with the next task, `--fresh` starts again.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from sdcompress.memory import MemoryWatch
from sdcompress.processor import processor_brand
from sdcompress.runtime.manifest import sha256_of
from sdcompress.source import locate
from sdcompress.store import key_of

_PACKAGES = ("openvino", "nncf", "optimum-intel", "torch", "diffusers")
_TASKS = Path(__file__).with_name("compression_tasks.py")
_PIPELINE = "(the pipeline itself, without recording)"


@dataclass(frozen=True)
class Result:
    """What one task took. `peak_anonymous_bytes` leaves out mapped files."""

    seconds: float
    peak_rss_bytes: int
    peak_anonymous_bytes: int


@dataclass(frozen=True)
class Task:
    """Ours and the peer's way to the same thing, and the targets: ratio of times, bytes.

    What stands under the same name above is not run again, nor is a peer without a command.
    """

    name: str
    ours: tuple[str, ...]
    peer: tuple[str, ...] | None
    peer_name: str
    time_ratio: float | None
    peak_bytes: float | None
    beyond: str | None = None  # the task whose peak is subtracted before the target is judged


def tasks(model: Path, work: Path) -> list[Task]:
    """All comparisons, in the order in which they build on each other."""
    optimum = Path(sys.executable).with_name("optimum-cli")
    export = (str(optimum), "export", "openvino", "--model", str(model), "--task", "text-to-image")
    convert = (sys.executable, "-m", "sdcompress", "convert", str(model), str(work / "ir"))
    child = (sys.executable, str(_TASKS), str(work))
    return [
        Task("convert the pipeline", convert, (*export, "--weight-format", "fp16",
             str(work / "peer_ir")), "optimum-cli export", 0.7, 4e9),
        Task(_PIPELINE, (*child, "pipeline"), None, "", None, None),
        Task("record inputs", (*child, "record"), None, "", None, 3e9, beyond=_PIPELINE),
        Task("int8 weights of the UNet", (*child, "int8_weights"), (*child, "peer_int8_weights"),
             "nncf.compress_weights", None, 3e9),
        Task("int8 weights of its linear layers", (*child, "int8_linear"), None, "", None, None),
        Task("W8A8 of the UNet", (*child, "int8"), (*child, "peer_int8"),
             "nncf.quantize", 0.5, 6e9),
        Task("W8A8 of the UNet, ranges in f32", (*child, "int8_f32"), None,
             "nncf.quantize", None, None),
        Task("hybrid of the UNet", (*child, "hybrid"), None, "nncf.quantize", 0.5, 6e9),
        Task("hybrid of the UNet", (*child, "hybrid"), (*child, "peer_hybrid"),
             "nncf, as optimum-intel calls it", 0.5, 6e9),
        Task("W8A8 again, another ignored scope", (*child, "int8_again"), None, "", None, None),
        Task("(nncf.quantize itself on one input of 8 x 8 latents)", (*child, "peer_tiny"),
             None, "", None, None),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="diffusers folder  [default: made for this]")
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks/sd21"))
    parser.add_argument("--items", type=int, default=64, help="calibration inputs")
    parser.add_argument("--fresh", action="store_true", help="measure everything anew")
    options = parser.parse_args()
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    (work / "items").write_text(str(options.items))
    model = options.model.resolve() if options.model else _made_model(work)
    print(_headline(model, options.items))
    print("| task | ours | peer | time | peak memory | target |")
    print("|---|---|---|---|---|---|")
    key = _key(model, options.items)
    results: dict[str, Result] = {}
    peers: dict[str, Result] = {}
    for task in tasks(model, work):
        if task.name not in results:
            record = work / "results" / f"{task.name}.json"
            results[task.name] = _measured(task.ours, record, key, options.fresh)
        if task.peer:
            record = work / "results" / f"{task.name}, peer.json"
            peers[task.peer_name] = _measured(task.peer, record, key, options.fresh)
        print(_row(task, peers.get(task.peer_name), results), flush=True)


def _made_model(work: Path) -> Path:
    model = work / "model"
    if not (model / "model_index.json").exists():
        shutil.rmtree(model, ignore_errors=True)
        script = Path(__file__).with_name("make_sd21.py")
        subprocess.run([sys.executable, str(script), str(model)], check=True)
    return model


def _headline(model: Path, items: int) -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    return (
        f"\n{processor_brand()}, {os.cpu_count()} cores, {platform.platform()}; {versions}; "
        f"{items} calibration inputs; model {model.name}\n"
    )


def _key(model: Path, items: int) -> str:
    """What a result depends on: our code, that of the tasks, the model, inputs and packages."""
    return key_of(
        model=locate(str(model)).revision,
        items=items,
        packages={name: version(name) for name in _PACKAGES},
        tasks=[sha256_of(file) for file in (Path(__file__), _TASKS)],
    )


def _measured(command: tuple[str, ...], record: Path, key: str, fresh: bool) -> Result:
    if record.exists() and not fresh:
        kept = json.loads(record.read_text())
        if kept.pop("key", None) == key:
            return Result(**kept)
    _clear(command)
    log = record.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    watch = MemoryWatch(seconds=0.02, tree=True)
    start = time.perf_counter()
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "CI": "true", "NNCF_CI": "1"}
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        with watch.over(process.pid):
            code = process.wait()
    seconds = time.perf_counter() - start
    if code != 0:
        raise SystemExit(f"{' '.join(command)} failed with exit code {code}; see {log}")
    result = Result(seconds, watch.peak_rss_bytes, watch.peak_anonymous_bytes)
    record.write_text(json.dumps(asdict(result) | {"key": key}))
    return result


def _clear(command: tuple[str, ...]) -> None:
    """Removes what an earlier run of a conversion wrote; the other tasks clear their own."""
    target = Path(command[-1])
    if target.is_dir() and target.name in ("ir", "peer_ir"):
        shutil.rmtree(target)


def _row(task: Task, peer: Result | None, results: dict[str, Result]) -> str:
    ours = results[task.name]
    mine = f"{ours.seconds:.0f} s, {ours.peak_rss_bytes / 1e9:.2f} GB"
    if task.beyond and task.peak_bytes:
        more = ours.peak_rss_bytes - results[task.beyond].peak_rss_bytes
        verdict = _verdict(more <= task.peak_bytes)
        target = f"{task.peak_bytes / 1e9:.0f} GB more: {more / 1e9:.2f} GB, {verdict}"
        return f"| {task.name} | {mine} | - | - | - | {target} |"
    if peer is None:
        return f"| {task.name} | {mine} | - | - | - | - |"
    theirs = f"{task.peer_name}: {peer.seconds:.0f} s, {peer.peak_rss_bytes / 1e9:.2f} GB"
    ratio = ours.seconds / peer.seconds
    memory = ours.peak_rss_bytes / peer.peak_rss_bytes
    wanted = []
    if task.time_ratio is not None:
        wanted.append(f"time x {task.time_ratio}: {_verdict(ratio <= task.time_ratio)}")
    if task.peak_bytes is not None:
        held = ours.peak_rss_bytes <= task.peak_bytes
        wanted.append(f"{task.peak_bytes / 1e9:.0f} GB: {_verdict(held)}")
    return (
        f"| {task.name} | {mine} | {theirs} | x {ratio:.2f} | x {memory:.2f} | "
        f"{', '.join(wanted) or '-'} |"
    )


def _verdict(held: bool) -> str:
    return "met" if held else "missed"


if __name__ == "__main__":
    main()
