"""What goes wrong on the way: kills, overflow, a full disk. Nothing is lost, and faults say why."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import QUICK, quick_recipe

from sdcompress.demo import CLIP_DIR, MODEL_DIR
from sdcompress.errors import SdcompressError
from sdcompress.runtime import verify
from sdcompress.workflow import quantize

pytestmark = pytest.mark.filterwarnings("ignore")  # raised inside the libraries


def test_a_model_that_overflows_is_a_clear_error(tmp_path: Path) -> None:
    import safetensors.numpy

    broken = Path(shutil.copytree(MODEL_DIR, tmp_path / "broken"))
    weights = broken / "unet/diffusion_pytorch_model.safetensors"
    tensors = safetensors.numpy.load_file(weights)
    tensors["conv_in.weight"][:] = float("inf")
    safetensors.numpy.save_file(tensors, weights, metadata={"format": "pt"})
    recipe = quick_recipe("unet_int8", f"model={broken}", f"evaluate.scorer={CLIP_DIR}")
    with pytest.raises(SdcompressError, match=r"NaN or infinite|not finite"):
        quantize(recipe, tmp_path / "out" / "x")
    assert not (tmp_path / "out" / "x").exists()


def small_disk(place: Path, megabytes: int, *command: str) -> subprocess.CompletedProcess[str]:
    """Runs a command while `place` is a disk of this size; lists what is left on it."""
    mount = f"mount -t tmpfs -o size={megabytes}m tmpfs {shlex.quote(str(place))}"
    script = f"{mount} || exit 77; {shlex.join(command)}; code=$?; find {place}; exit $code"
    return subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", script],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(not shutil.which("unshare"), reason="needs Linux' unshare")
def test_a_full_disk_is_a_clear_error(tmp_path: Path) -> None:
    if small_disk(tmp_path, 1, "true").returncode:
        pytest.skip("this user may not mount a small disk")
    console_script = str(Path(sys.executable).with_name("sdcompress"))
    result = small_disk(tmp_path, 10, console_script, "convert", "demo", str(tmp_path / "out"))
    assert result.returncode == 2, result.stderr
    assert "could not write the IR" in result.stderr
    assert "are free on that disk" in result.stderr
    assert "Traceback" not in result.stderr
    assert not [line for line in result.stdout.splitlines() if line.endswith((".xml", ".bin"))]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_run_killed_again_and_again_ends_with_the_same_result(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    output = tmp_path / "unet_int8"
    store = output.parent / ".sdcompress"
    command = [sys.executable, "-m", "sdcompress", "quantize", "unet_int8"]
    command += [word for setting in QUICK for word in ("--set", setting)]
    command += ["--output", str(output)]
    kept = {}
    for stage in ("calibrate", "ranges", "compress", "draw", "measure"):
        _kill_in(stage, command, store)
        assert not output.exists()
        assert not list(store.glob(f"{stage}-*")) or stage in ("compress", "draw")
        for file in store.glob(_KEPT.get(stage, "nothing")):
            finished = Path(
                *[part for part in file.relative_to(store).parts if part != "unfinished"]
            )
            kept[finished] = file.stat().st_mtime_ns
    subprocess.run(command, check=True, capture_output=True, env=os.environ)
    bundle = request.getfixturevalue("bundle")  # which another process of the tests may be making
    stages = {file.parts[0].split("-")[0] for file in kept}
    assert stages == {"calibrate", "ranges", "pictures", "measure"}
    for file, written in kept.items():  # went on inside the stage: what was there is there still
        assert (store / file).stat().st_mtime_ns == written
    assert verify(output) == []
    for file in ("unet/openvino_model.bin", "text_encoder/openvino_model.bin"):
        assert (output / file).read_bytes() == (bundle / file).read_bytes()
    mine, other = (
        json.loads((folder / "report/report.json").read_text()) for folder in (output, bundle)
    )
    assert mine["quality"] == other["quality"]
    assert not any((store / "scratch").iterdir())


# How far a stage that resumes inside itself has to be to be worth a kill.
_BEGUN = {
    "calibrate": "unfinished/calibrate-*/recorded/00001.npz",
    "ranges": "unfinished/ranges-*/00002.npy",
    "draw": "pictures-*/*.png",
    "measure": "unfinished/measure-*/baseline-0.json",
}
# What such a stage writes bit by bit; pictures stay where they are.
_KEPT = {
    "calibrate": "unfinished/calibrate-*/recorded/*.npz",
    "ranges": "unfinished/ranges-*/*.npy",
    "draw": "pictures-*/*.png",
    "measure": "unfinished/measure-*/*.json",
}


def _kill_in(stage: str, command: list[str], store: Path) -> None:
    """Starts the run and kills it, without warning, as soon as it works on `stage`."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    try:
        while not list(store.glob(_BEGUN.get(stage, f"scratch/*/{stage}-*"))):
            assert process.poll() is None, f"the run ended before it reached {stage}"
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
