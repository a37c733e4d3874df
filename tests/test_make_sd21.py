"""The stand-in for the real model: as large, laid out as published, and as hard to quantize."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from diffusers import DDIMScheduler, PNDMScheduler
from transformers import CLIPTokenizer

SCRIPT = Path(__file__).parent.parent / "benchmarks/make_sd21.py"
# Parameters of the published weights, by the headers of their files.
PUBLISHED = {"_unet": 865_910_724, "_vae": 83_653_863, "_text_encoder": 340_387_840}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_sd21", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("size", [64, 96], ids=["base", "v"])
@pytest.mark.parametrize("part", PUBLISHED)
def test_parts_are_as_large_as_the_published_ones(
    script: ModuleType, part: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "_add_outliers", lambda *_: None)  # needs values
    with torch.device("meta"):
        model = getattr(script, part)(size)
    assert sum(weights.numel() for weights in model.parameters()) == PUBLISHED[part]
    if part == "_unet":
        assert model.config.sample_size == size
        assert model.config.upcast_attention == (size == 96)


def test_outliers_change_activations_but_not_what_a_layer_computes(script: ModuleType) -> None:
    torch.manual_seed(0)
    norm, reader = torch.nn.LayerNorm(400), torch.nn.Linear(400, 8)
    values = torch.randn(64, 400)
    with torch.no_grad():
        before, expected = norm(values), reader(norm(values))
        script._add_outliers(norm, [reader])
        after = norm(values)
        torch.testing.assert_close(reader(after), expected, atol=1e-5, rtol=1e-5)
    largest = after.abs().amax(0)
    assert (largest > 4 * before.abs().max()).sum() <= 4  # one channel in a hundred
    assert largest.max() > 2 * before.abs().max()


@pytest.mark.parametrize(
    ("variant", "kind", "prediction"),
    [("base", PNDMScheduler, "epsilon"), ("v", DDIMScheduler, "v_prediction")],
)
def test_schedulers_are_those_of_the_variants(
    script: ModuleType, variant: str, kind: type, prediction: str
) -> None:
    values = script._scheduler(variant)
    assert script._index(variant)["scheduler"] == ["diffusers", kind.__name__]
    loaded = kind.from_config(values)  # type: ignore[attr-defined]
    assert loaded.config.prediction_type == prediction
    assert loaded.config.num_train_timesteps == 1000


@pytest.mark.filterwarnings("ignore:Deprecated in 0.9.0")  # inside transformers
def test_the_tokenizer_has_all_entries(script: ModuleType, tmp_path: Path) -> None:
    script._write_tokenizer(tmp_path / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert len(tokenizer) == 49408
    ids = tokenizer("a photo of an astronaut riding a horse").input_ids
    assert ids[0] == 49406
    assert ids[-1] == 49407
    assert "".join(tokenizer.convert_ids_to_tokens(ids[1:-1])).replace("</w>", " ") == (
        "a photo of an astronaut riding a horse "
    )
