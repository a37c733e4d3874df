"""Split layers: the same numbers in floating point, and quantizers of their own."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino as ov
import pytest

from sdcompress.evaluate.sqnr import CEILING_DB, sqnr_db
from sdcompress.ir import IR_NAME
from sdcompress.precision import layers_of
from sdcompress.runtime.graph import offer_deep, take_deep
from sdcompress.splitting import FIRST, split_first_token, split_skips

F32 = {"INFERENCE_PRECISION_HINT": "f32"}


@pytest.fixture
def inputs() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "sample": random.standard_normal((2, 4, 16, 16), dtype=np.float32),
        "timestep": np.array([501]),
        "encoder_hidden_states": random.standard_normal((2, 77, 128), dtype=np.float32),
    }


def read(baseline: Path) -> ov.Model:
    return ov.Core().read_model(baseline / "unet" / IR_NAME)


def answer(model: ov.Model, inputs: dict[str, np.ndarray]) -> np.ndarray:
    return np.array(ov.Core().compile_model(model, "CPU", F32)(inputs)[0])


@pytest.mark.parametrize(("split", "layers"), [(split_skips, 8), (split_first_token, 20)])
def test_no_number_changes_but_by_rounding(
    baseline: Path, inputs: dict[str, np.ndarray], split: Callable[[ov.Model], int], layers: int
) -> None:
    model = read(baseline)
    before = {layer.name: layer.parameters for layer in layers_of(model)}
    assert split(model) == layers
    assert sqnr_db(answer(read(baseline), inputs), answer(model, inputs)) == CEILING_DB
    after = {layer.name: layer.parameters for layer in layers_of(model)}
    new = after.keys() - before.keys()
    if split is split_skips:
        assert len(new) == 2 * layers
        gone = before.keys() - after.keys()
        assert sum(before[name] for name in gone) == sum(after[name] for name in new)
    else:
        assert new == {name + FIRST for name in before if ".attn2.to_k" in name or
                       ".attn2.to_v" in name}  # fmt: skip


def test_a_cache_of_what_comes_from_below_leaves_the_same_layers_out(
    baseline: Path, inputs: dict[str, np.ndarray]
) -> None:
    whole = read(baseline)
    offer_deep(whole, 1)
    deep = np.array(ov.Core().compile_model(whole, "CPU", F32)(inputs)["deep"])
    answers, sizes = [], []
    for split in (False, True):
        model = read(baseline)
        if split:
            split_skips(model)
        take_deep(model, 1)
        answers.append(answer(model, {**inputs, "deep": deep}))
        sizes.append(sum(layer.parameters for layer in layers_of(model)))
    assert sizes[0] == sizes[1]
    assert sqnr_db(*answers) == CEILING_DB
