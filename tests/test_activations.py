"""Collected statistics: numpy on the same model's outputs is the witness."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import openvino as ov
import pytest

from sdcompress import activations
from sdcompress.activations import PROBES, Activation, Statistics, collect, watch_list
from sdcompress.errors import CalibrationError
from sdcompress.ir import IR_NAME


class Inputs:
    """UNet inputs, noise at timesteps from the whole trajectory."""

    def __init__(self, items: int = 3) -> None:
        self.items = items

    def __len__(self) -> int:
        return self.items

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        random = np.random.default_rng(1)
        for step in np.linspace(901, 1, self.items).astype(int):
            yield {
                "sample": random.standard_normal((1, 4, 16, 16), dtype=np.float32),
                "timestep": np.array(step),
                "encoder_hidden_states": random.standard_normal((1, 77, 128), dtype=np.float32),
            }


@pytest.fixture(scope="module")
def xml(baseline: Path) -> Path:
    return baseline / "unet" / IR_NAME


@pytest.fixture(scope="module")
def statistics(xml: Path, tmp_path_factory: pytest.TempPathFactory) -> Statistics:
    folder = tmp_path_factory.mktemp("statistics")
    collect(xml, None, Inputs(), folder, "f32")
    return Statistics(folder)


def test_figures_are_those_of_the_activations_themselves(xml: Path, statistics: Statistics) -> None:
    model = ov.Core().read_model(xml)
    watched = [one for one in watch_list(model) if "down_blocks.1" in one.node]
    assert len(watched) > 20
    operations = {op.get_friendly_name(): op for op in model.get_ops()}
    model.add_outputs([operations[one.node].output(one.port) for one in watched])
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for item, feed in enumerate(Inputs()):
        results = compiled(feed)
        for number, one in enumerate(watched, start=1):  # the first output is the network's own
            values = np.moveaxis(results[number], one.axis, 0)
            values = values.reshape(len(values), -1)
            found, axis = statistics.read(one.node, one.port, item, one.axis)
            assert axis == one.axis
            expected = np.stack([values.min(1), values.max(1), values.mean(1)])
            np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(values).max())


def test_a_killed_run_goes_on_with_the_next_item(xml: Path, tmp_path: Path) -> None:
    watched = watch_list(ov.Core().read_model(xml))[:5]

    def stop(done: int, _total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(xml, watched, Inputs(), tmp_path, "f32", stop)
    kept = sorted(tmp_path.glob("*.npy"))
    assert len(kept) == 2
    before = [(file.stat().st_mtime_ns, file.read_bytes()) for file in kept]
    steps: list[int] = []
    collect(xml, watched, Inputs(), tmp_path, "f32", lambda done, _: steps.append(done))
    assert steps == [2, 3]
    assert before == [(file.stat().st_mtime_ns, file.read_bytes()) for file in kept]
    whole = tmp_path / "whole"
    collect(xml, watched, Inputs(), whole, "f32")
    for item in range(3):
        name = f"{item:05d}.npy"
        np.testing.assert_array_equal(np.load(tmp_path / name), np.load(whole / name))


needs_bf16 = pytest.mark.skipif(
    "BF16" not in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"),
    reason="this processor has no BF16",
)


@needs_bf16
def test_bf16_changes_ranges_little(xml: Path, tmp_path: Path, statistics: Statistics) -> None:
    assert collect(xml, None, Inputs(), tmp_path, "bf16") == "bf16"
    rounded = Statistics(tmp_path)
    for one in watch_list(ov.Core().read_model(xml)):
        (low, high, _), _ = statistics.read(one.node, one.port, 0, one.axis)
        (low16, high16, _), _ = rounded.read(one.node, one.port, 0, one.axis)
        span = high.max() - low.min()
        assert abs(high16.max() - high.max()) < 0.05 * span
        assert abs(low16.min() - low.min()) < 0.05 * span


@needs_bf16
def test_bf16_is_chosen_when_it_moves_ranges_less_than_the_bound(
    xml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = Inputs(2 * PROBES + 1)
    # Behind these, sums in bf16 depend on how threads share them, and differ from run to run.
    found = watch_list(ov.Core().read_model(xml))
    watched = [one for one in found if "down_blocks.0" in one.node][::6]
    folders = {name: tmp_path / name for name in ("f32", "bf16", "below", "above")}
    collect(xml, watched, inputs, folders["f32"], "f32")
    collect(xml, watched, inputs, folders["bf16"], "bf16")
    shift = largest_shift(Statistics(folders["f32"]), Statistics(folders["bf16"]))
    monkeypatch.setattr(activations, "LARGEST_SHIFT", 1.001 * shift)
    assert collect(xml, watched, inputs, folders["below"], "auto") == "bf16"
    monkeypatch.setattr(activations, "LARGEST_SHIFT", 0.999 * shift)
    assert collect(xml, watched, inputs, folders["above"], "auto") == "f32"
    for item in range(len(inputs)):
        figures = {name: np.load(one / f"{item:05d}.npy") for name, one in folders.items()}
        probed = item in np.linspace(0, len(inputs) - 1, PROBES).astype(int)
        np.testing.assert_array_equal(figures["above"], figures["f32"])
        np.testing.assert_array_equal(figures["below"], figures["f32" if probed else "bf16"])
        assert (figures["f32"] != figures["bf16"]).any()
    # The choice is kept with what was collected by it.
    assert collect(xml, watched, inputs, folders["below"], "auto") == "bf16"


@needs_bf16
@pytest.mark.parametrize("killed_at", [PROBES // 2, PROBES + 4], ids=["choosing", "chosen"])
def test_a_killed_choice_of_precision_goes_on(
    xml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    monkeypatch.setattr(activations, "LARGEST_SHIFT", np.inf)
    inputs = Inputs(2 * PROBES + 1)
    found = watch_list(ov.Core().read_model(xml))
    watched = [one for one in found if "down_blocks.0" in one.node][:2]

    def stop(done: int, _total: int) -> None:
        if done == killed_at:
            raise KeyboardInterrupt

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    with pytest.raises(KeyboardInterrupt):
        collect(xml, watched, inputs, killed, "auto", stop)
    kept = {file: file.stat().st_mtime_ns for file in killed.glob("*.npy")}
    assert len(kept) == killed_at
    assert collect(xml, watched, inputs, killed, "auto") == "bf16"
    assert collect(xml, watched, inputs, whole, "auto") == "bf16"
    assert kept.items() <= {file: file.stat().st_mtime_ns for file in killed.iterdir()}.items()
    for item in range(len(inputs)):
        name = f"{item:05d}.npy"
        np.testing.assert_array_equal(np.load(killed / name), np.load(whole / name))


def largest_shift(exact: Statistics, rounded: Statistics) -> float:
    probes = np.linspace(0, exact.items - 1, PROBES).astype(int)
    shifts = []
    for node, port in exact.names():
        ends = []
        for one in (exact, rounded):
            items = [one.read(node, port, probe)[0] for probe in probes]
            ends.append(np.mean([(low.min(), high.max()) for low, high, _ in items], axis=0))
        shifts.append(np.abs(ends[1] - ends[0]).max() / (ends[0][1] - ends[0][0]))
    return float(max(shifts))


def test_few_items_are_not_worth_a_comparison(xml: Path, tmp_path: Path) -> None:
    watched = watch_list(ov.Core().read_model(xml))[:2]
    assert collect(xml, watched, Inputs(), tmp_path, "auto") == "f32"


def test_overflowing_activations_are_named(xml: Path, tmp_path: Path) -> None:
    class Infinite(Inputs):
        def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
            for feed in super().__iter__():
                yield feed | {"sample": np.full_like(feed["sample"], np.inf)}

    with pytest.raises(CalibrationError, match="recorded input 0"):
        collect(xml, None, Infinite(), tmp_path, "f32")


def test_figures_of_several_folders_are_read_as_one(
    xml: Path, tmp_path: Path, statistics: Statistics
) -> None:
    extra = Activation("__module.conv_in/aten::_convolution/Convolution", 0, 3)
    assert not statistics.has(extra.node, extra.port, extra.axis)
    usual, more = tmp_path / "usual", tmp_path / "more"
    collect(xml, watch_list(ov.Core().read_model(xml))[:3], Inputs(), usual, "f32")
    collect(xml, [extra], Inputs(), more, "f32")
    both = Statistics(usual, more)
    assert both.has(extra.node, extra.port, 3)
    figures, _ = both.read(extra.node, extra.port, 1, 3)
    assert figures.shape == (3, 16)


def test_more_files_are_read_than_may_be_open(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="Windows has no such limit")
    items, figures = 600, np.arange(6, dtype=np.float32)
    for item in range(items):
        np.save(tmp_path / f"{item:05d}.npy", figures + item)
    row = {"activation": asdict(Activation("conv", 0, 1)), "offset": 0, "shape": [1, 2, 4, 4]}
    (tmp_path / "index.json").write_text(json.dumps({"items": items, "activations": [row]}))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (550, before[1]))
    try:
        found = [Statistics(tmp_path).read("conv", 0, item)[0] for item in (0, 1)]
        opened = Statistics(tmp_path)
        kept = [opened.read("conv", 0, item)[0] for item in range(items)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    np.testing.assert_array_equal(kept[:2], found)
    np.testing.assert_array_equal(kept[-1], figures.reshape(3, 2) + items - 1)
