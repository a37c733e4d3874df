"""Searching, part by part: groups, switches, errors, costs and choices, on the demo's UNet."""

import itertools
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import openvino as ov
import pytest
from conftest import quick_recipe

from sdcompress.calibrate import ModelInputs
from sdcompress.evaluate.clip_score import ClipEyes
from sdcompress.evaluate.sqnr import sqnr_db
from sdcompress.ir import IR_NAME
from sdcompress.judging import Judging
from sdcompress.line import Line
from sdcompress.methods import Grouping, Int8, Int8Weights, Mixed
from sdcompress.precision import layers_of
from sdcompress.prompts import Prompt
from sdcompress.runtime import Pipeline, Settings
from sdcompress.search import cost, sensitivity
from sdcompress.search.calls import Call, Guidance, pick_calls, shrunk
from sdcompress.search.cost import measure_costs
from sdcompress.search.groups import Group, group_layers
from sdcompress.search.sensitivity import (
    OVERFLOWED,
    DrawnError,
    GroupError,
    Keeper,
    Sensitivity,
    noise_share,
)
from sdcompress.search.switchboard import Switchboard, compressed_layers
from sdcompress.search.writing import as_method
from sdcompress.splitting import split_first_token, split_skips
from sdcompress.survey import Survey

VARIANTS = {"w8a8": Int8(method="int8"), "weights8": Int8Weights(method="int8_weights")}


@pytest.fixture(scope="module")
def inputs() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "sample": random.standard_normal((2, 4, 16, 16), dtype=np.float32),
        "timestep": np.array([501]),
        "encoder_hidden_states": random.standard_normal((2, 77, 128), dtype=np.float32),
    }


@pytest.fixture(scope="module")
def groups(baseline: Path, bundle: Path) -> tuple[Group, ...]:
    layers = compressed_layers(baseline / "unet" / IR_NAME, {"w8a8": bundle / "unet"})
    return group_layers(layers, "block")


@pytest.fixture(scope="module")
def board(
    baseline: Path, bundle: Path, groups: tuple[Group, ...], inputs: dict[str, np.ndarray]
) -> Switchboard:
    shapes = {name: values.shape for name, values in inputs.items()}
    xml = baseline / "unet" / IR_NAME
    return Switchboard(xml, bundle / "unet" / IR_NAME, groups, shapes)


def answer(xml: Path, inputs: dict[str, np.ndarray]) -> np.ndarray:
    model = ov.Core().read_model(xml)
    model.reshape({name: list(values.shape) for name, values in inputs.items()})
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.array(compiled(inputs)[0])


@pytest.mark.parametrize("grouping", ["block", "part", "layer"])
def test_a_groups_pattern_finds_its_layers_and_no_others(
    baseline: Path, grouping: Grouping
) -> None:
    names = [layer.name for layer in layers_of(baseline / "unet" / IR_NAME)]
    found = group_layers(names, grouping)
    assert sorted(itertools.chain(*(group.layers for group in found))) == sorted(names)
    for group in found:
        assert [name for name in names if re.search(group.pattern, name)] == list(group.layers)
    if grouping == "block":
        assert {group.kind for group in found} == {
            "conv_in", "conv_out", "time_embedding", "resnet", "self_attention",
            "cross_attention", "text", "feed_forward", "projection", "sampler",
        }  # fmt: skip


def test_layers_of_no_module_have_a_pattern_too() -> None:
    names = ["MatMul_7", "MatMul_77", "__module.strange/aten::linear/MatMul"]
    for group in group_layers(names, "block"):
        assert [name for name in names if re.search(group.pattern, name)] == list(group.layers)


def test_layers_left_alone_have_nothing_to_choose(groups: tuple[Group, ...]) -> None:
    # The bundle's recipe keeps both ends of the UNet in 16 bits.
    assert not {"conv_in", "conv_out"} & {group.kind for group in groups}


def test_all_switches_off_is_the_baseline_and_all_on_the_variant(
    board: Switchboard, baseline: Path, bundle: Path, inputs: dict[str, np.ndarray]
) -> None:
    off, on = board.ask(inputs), board.ask(inputs, [group.name for group in board.groups])
    assert sqnr_db(answer(baseline / "unet" / IR_NAME, inputs), off) > 90
    # The variant's two ends, which are in no group, have 16-bit weights.
    variant = answer(bundle / "unet" / IR_NAME, inputs)
    assert sqnr_db(variant, on) > sqnr_db(off, on) + 12


def test_one_switch_is_a_model_in_which_that_group_alone_is_quantized(
    board: Switchboard,
    baseline: Path,
    bundle: Path,
    inputs: dict[str, np.ndarray],
    tmp_path: Path,
) -> None:
    from sdcompress.compress import mix

    group = next(one for one in board.groups if one.kind == "resnet")
    options = Mixed(
        method="mixed", variants={"w8a8": VARIANTS["w8a8"]}, layers={group.pattern: "w8a8"}
    )
    built = mix(baseline / "unet", {"w8a8": bundle / "unet"}, options, tmp_path / "unet")
    expected = answer(baseline / "unet" / IR_NAME, inputs)
    error = sqnr_db(expected, board.ask(inputs, [group.name]))
    # The rest of the one that was built has 16-bit weights.
    assert error == pytest.approx(
        sqnr_db(expected, answer(built.folder / IR_NAME, inputs)), abs=0.3
    )
    assert error < 60


def test_it_is_known_which_variant_changes_a_layer(baseline: Path, bundle: Path) -> None:
    xml = baseline / "unet" / IR_NAME
    text = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    found = compressed_layers(xml, {"w8a8": bundle / "unet", "none": baseline / "unet"})
    assert set().union(*found.values()) == {"w8a8"}
    assert any(text in layer for layer in found)


def test_what_overflows_counts_as_much_noise_as_there_can_be() -> None:
    exact, broken = np.ones(4, np.float32), np.array([np.nan, 1, 1, 1], np.float32)
    assert noise_share(exact, exact) == 0.0
    assert noise_share(exact, exact * 1.1) == pytest.approx(0.01, rel=1e-3)
    assert noise_share(exact, broken) == noise_share(exact, exact * np.inf) == OVERFLOWED


def test_guided_predictions_are_those_of_the_denoising_loop() -> None:
    prediction = np.array([[1.0], [3.0]], np.float32)[..., None, None]
    assert Guidance(5.0, "epsilon").guided(prediction).item() == 11.0
    assert Guidance(5.0, "epsilon").guided(prediction[1:]).item() == 3.0


class Recorded:
    """Three calls in the order in which they were recorded."""

    def timesteps(self) -> np.ndarray:
        return np.array([1.0, 901.0, 501.0])

    def at(self, index: int) -> dict[str, np.ndarray]:
        return {"sample": np.full((2, 4, 2, 2), index, np.float32)}


def test_calls_are_spread_over_the_trajectory_noisiest_first() -> None:
    levels = np.linspace(0.0, 10.0, 1001)
    assert [call.timestep for call in pick_calls(Recorded(), 3, levels)] == [901, 501, 1]
    (middle,) = pick_calls(Recorded(), 1, levels)
    assert middle.timestep == 501
    assert middle.sigma == pytest.approx(5.01)
    assert middle.inputs["sample"][0, 0, 0, 0] == 2


@pytest.mark.parametrize(
    ("height", "width", "block"), [(16, 16, 1), (63, 63, 1), (64, 64, 2), (96, 96, 3), (65, 99, 2)]
)
def test_clip_looks_at_pictures_of_small_latents(height: int, width: int, block: int) -> None:
    from torch import from_numpy
    from torch.nn.functional import avg_pool2d

    latents = np.random.default_rng(0).standard_normal((1, 4, height, width), dtype=np.float32)
    expected = avg_pool2d(from_numpy(latents), block).numpy()
    np.testing.assert_allclose(shrunk(latents), expected, atol=1e-6)


def test_costs_are_of_the_groups_own_layers(
    baseline: Path,
    bundle: Path,
    groups: tuple[Group, ...],
    inputs: dict[str, np.ndarray],
    tmp_path: Path,
) -> None:
    shapes = {name: values.shape for name, values in inputs.items()}
    models = {"fp16": baseline / "unet" / IR_NAME, "w8a8": bundle / "unet" / IR_NAME}
    told: list[tuple[int, int]] = []
    arguments = (models, groups, shapes, "CPU", None, tmp_path, lambda *done: told.append(done))
    costs = measure_costs(*arguments)
    assert told[-1] == (16, 16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "_Profiled", pytest.fail)
        assert measure_costs(*arguments) == costs  # read back
    sizes = {layer.name: layer.parameters for layer in layers_of(models["fp16"])}
    for group in groups:
        plain, compressed = (costs[name].of(group.name) for name in models)
        parameters = sum(sizes.get(layer, 0) for layer in group.layers)
        assert compressed.stored_bytes == parameters
        assert plain.stored_bytes == 2 * parameters
        assert compressed.executed_bytes == parameters  # kept in 8 bits by the CPU
        assert plain.executed_bytes >= 2 * parameters
        assert 0 < plain.seconds < costs["fp16"].seconds
    for whole in costs.values():
        assert 0.3 < sum(one.seconds for one in whole.groups) / whole.seconds < 1.3


def test_costs_are_those_of_the_precision_asked_for(
    baseline: Path, groups: tuple[Group, ...], inputs: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """In float32 the CPU keeps weights in 32 bits, whatever it would choose by itself."""
    models = {"fp16": baseline / "unet" / IR_NAME}
    shapes = {name: values.shape for name, values in inputs.items()}
    costs = measure_costs(models, groups, shapes, "CPU", "f32", tmp_path, lambda *_: None)
    sizes = {layer.name: layer.parameters for layer in layers_of(models["fp16"])}
    for group in groups:
        parameters = sum(sizes.get(layer, 0) for layer in group.layers)
        assert costs["fp16"].of(group.name).executed_bytes >= 4 * parameters > 0


@pytest.mark.parametrize("split", [split_skips, split_first_token])
def test_parts_of_a_split_layer_are_counted_once(
    baseline: Path,
    groups: tuple[Group, ...],
    inputs: dict[str, np.ndarray],
    tmp_path: Path,
    split: Callable[[ov.Model], int],
) -> None:
    whole = baseline / "unet" / IR_NAME
    model = ov.Core().read_model(whole)
    assert split(model) > 0
    parts = tmp_path / IR_NAME
    ov.save_model(model, parts, compress_to_fp16=False)
    shapes = {name: values.shape for name, values in inputs.items()}
    models = {"whole": whole, "parts": parts}
    costs = measure_costs(models, groups, shapes, "CPU", None, tmp_path, lambda *_: None)
    for group in groups:
        before, after = (costs[name].of(group.name) for name in ("whole", "parts"))
        assert after.executed_bytes == before.executed_bytes
        assert after.stored_bytes == before.stored_bytes
    assert costs["parts"].executed_bytes == costs["whole"].executed_bytes
    # Both ends are in no group.
    assert costs["whole"].executed_bytes > sum(one.executed_bytes for one in costs["whole"].groups)


def test_groups_that_were_not_drawn_grow_as_the_others_did() -> None:
    found = Sensitivity(
        (900, 100),
        (
            GroupError("a", (0.1, 0.3), (0.01, 0.03)),
            GroupError("b", (0.1, 0.1)),
            GroupError("c", (0.01, 0.03), (0.02, 0.0)),
        ),
        (DrawnError("a", 0.4, 0.1), DrawnError("b", 0.2, 0.03)),
    )
    assert found.expected("a") == (0.4, 0.1)
    assert found.expected("c") == pytest.approx((0.02 * 2.0, 0.01 * 5.0))
    assert found.expected("b") == (0.2, 0.0)  # it does not decide on content


def test_what_overflows_at_any_timestep_is_no_option_and_tells_nothing_of_the_others() -> None:
    found = Sensitivity(
        (900, 100),
        (
            GroupError("a", (OVERFLOWED, 0.1), (2.0, 0.1)),
            GroupError("b", (0.1, 0.3), (0.01, 0.03)),
            GroupError("c", (0.1, 0.1)),
            GroupError("d", (0.2, 0.2)),
        ),
        (
            DrawnError("a", 0.4, 0.1),
            DrawnError("b", 0.4, 0.04),
            DrawnError("c", OVERFLOWED, 2.0),
        ),
    )
    assert found.expected("a")[0] == found.expected("c")[0] == OVERFLOWED
    assert found.expected("d") == pytest.approx((0.4, 0.0))


@pytest.mark.parametrize(("any_size", "cells"), [(True, 32), (False, 64)])
def test_clip_looks_at_what_the_decoder_takes(any_size: bool, cells: int) -> None:
    seen: list[tuple[int, ...]] = []

    def decode(latents: np.ndarray, _: Settings) -> np.ndarray:
        seen.append(latents.shape)
        return latents

    sample = np.zeros((1, 4, 64, 64), np.float32)
    meter = object.__new__(sensitivity._Meter)
    meter._plan = cast(
        sensitivity.Experiment,
        SimpleNamespace(
            any_size=any_size,
            guidance=Guidance(1.0, "epsilon"),
            calls=(Call({"sample": sample}, 501, 1.0),),
            settings=Settings(),
        ),
    )
    meter._pipeline = cast(Pipeline, SimpleNamespace(decode=decode))
    meter._eyes = cast(ClipEyes, SimpleNamespace(embed=lambda _: np.ones((1, 8))))
    meter._expected = [sample]
    assert meter._content(0, sample) == pytest.approx(0.0)
    assert seen == [(1, 4, cells, cells)] * 2  # the baseline's, and the group's


@pytest.fixture
def survey(baseline: Path, build_folder: Path, tmp_path: Path) -> Survey:
    """Of a model whose own scheduler the runtime does not have."""
    model = Path(shutil.copytree(baseline, tmp_path / "model"))
    file = model / "scheduler/scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"_class_name": "EDMEulerScheduler"}))
    recorded = (build_folder / ".sdcompress").glob("calibrate-*")
    calibrated = max(recorded, key=lambda one: len(ModelInputs(one, "unet", 2).timesteps()))
    line = SimpleNamespace(converted=model, calibrated=calibrated)
    judging = SimpleNamespace(
        prompts=(Prompt("a red ring"),), instruments=SimpleNamespace(scorer=None, checker=True)
    )
    return Survey(quick_recipe("unet_int8"), cast(Line, line), cast(Judging, judging))


@pytest.mark.parametrize("fixed", [False, True])
def test_experiments_are_of_the_recipes_scheduler_and_size(survey: Survey, fixed: bool) -> None:
    convert = survey.recipe.convert.model_copy(update={"height": 128} if fixed else {})
    survey = replace(survey, recipe=survey.recipe.model_copy(update={"convert": convert}))
    vars(survey).update(variants={"w8a8": survey.line.converted}, groups=())
    experiment = survey._experiment("w8a8")
    assert len(experiment.calls) == survey.recipe.search.timesteps
    assert experiment.any_size is not fixed


def test_a_choice_is_written_in_few_patterns_that_say_the_same(
    groups: tuple[Group, ...],
) -> None:
    choice = {group.name: "w8a8" for group in groups}
    for group in groups:
        if group.kind == "cross_attention":
            choice[group.name] = "fp16"
        elif group.kind == "feed_forward" and group.place != "mid_block":
            choice[group.name] = "weights8"
    method = as_method(choice, groups, VARIANTS)
    assert isinstance(method, Mixed)
    assert len(method.layers) == 2
    for group in groups:
        for layer in group.layers:
            assert (method.variant_of(layer) or "fp16") == choice[group.name]


def test_many_layers_are_named_in_patterns_of_a_readable_length(baseline: Path) -> None:
    layers = [one.name for one in layers_of(baseline / "unet" / IR_NAME)]
    single = group_layers(layers, "layer")
    choice = {one.name: ("w8a8", "weights8")[index % 2] for index, one in enumerate(single)}
    method = as_method(choice, single, VARIANTS)
    assert isinstance(method, Mixed)
    assert max(map(len, method.layers)) <= 100
    assert all(method.variant_of(one.layers[0]) == choice[one.name] for one in single)


def test_what_was_measured_before_does_not_count_as_speed(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []

    def keeper() -> Keeper:
        return Keeper(tmp_path, {"calls": 2, "drawn": 5}, 23, lambda *one: told.append(one))

    first, error = keeper(), GroupError("a", (0.1,))
    for index in range(2):
        first.kept("calls", index, GroupError, lambda: error)
    again = keeper()
    assert again.kept("calls", 1, GroupError, pytest.fail) == error
    again.kept("drawn", 0, DrawnError, lambda: DrawnError("a", 0.1, 0.1))
    again.finish()
    assert told == [(2, 23), (4, 23), (4, 23), (9, 23), (23, 23)]


def test_a_choice_of_one_variant_throughout_is_that_method(groups: tuple[Group, ...]) -> None:
    assert as_method({group.name: "w8a8" for group in groups}, groups, VARIANTS) == VARIANTS["w8a8"]
