"""Sizes and work of a model from its headers: torch's own counters are the witness."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from original_layout import write_single_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel

from sdcompress.architecture import Architecture, read_architecture
from sdcompress.demo import MODEL_DIR
from sdcompress.errors import SourceError
from sdcompress.source import locate


@pytest.fixture(scope="module")
def demo() -> Architecture:
    return read_architecture(locate("demo"), None, None)


def test_parameters_and_bytes_are_those_of_the_models(demo: Architecture) -> None:
    for part, kind in ((demo.unet, UNet2DConditionModel), (demo.vae, AutoencoderKL)):
        name = "unet" if part is demo.unet else "vae"
        with torch.device("meta"):
            model = kind.from_config(kind.load_config(MODEL_DIR / name))
        assert part.parameters == sum(p.numel() for p in model.parameters())
        assert part.stored_bytes == 2 * part.parameters


@pytest.mark.parametrize("pixels", [128, 256])
def test_work_is_what_torch_counts(pixels: int) -> None:
    found = read_architecture(locate("demo"), pixels, pixels)
    size = pixels // 8
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(
            UNet2DConditionModel.load_config(MODEL_DIR / "unet")
        )
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(MODEL_DIR / "vae"))
        text = CLIPTextModel(CLIPTextConfig.from_pretrained(MODEL_DIR / "text_encoder"))
        latents = torch.zeros(1, 4, size, size)
        embeddings = torch.zeros(1, 77, unet.config.cross_attention_dim)
        assert found.unet_macs == counted(lambda: unet(latents, torch.zeros(1), embeddings))
        assert found.vae_decoder_macs == counted(lambda: vae.decode(latents))
        tokens = torch.zeros(1, 77, dtype=torch.long)
        assert found.text_encoder_macs == pytest.approx(counted(lambda: text(tokens)), rel=0.1)


def counted(call: object) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()  # type: ignore[operator]
    return counter.get_total_flops() / 2


@pytest.mark.parametrize("text", ["clip", "openclip"])
def test_a_single_file_is_as_large_as_its_folder(
    demo: Architecture, text: str, tmp_path: Path
) -> None:
    settings = tmp_path / "settings"
    shutil.copytree(MODEL_DIR, settings, ignore=shutil.ignore_patterns("*.safetensors"))
    file = write_single_file(MODEL_DIR, tmp_path / "demo.safetensors", text=text)
    assert read_architecture(locate(str(file), config=str(settings)), None, None) == demo


@pytest.mark.parametrize(
    "changed",
    [{"sample_size": None}, {"layers_per_block": "one"}, {"block_out_channels": None}],
    ids=lambda values: next(iter(values)),
)
def test_settings_that_cannot_be_read_are_named(changed: dict[str, object], tmp_path: Path) -> None:
    folder = shutil.copytree(MODEL_DIR, tmp_path / "demo")
    file = folder / "unet/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    with pytest.raises(SourceError, match=r"unet.config\.json"):
        read_architecture(locate(str(folder)), None, None)


def test_a_square_size_may_be_written_twice(demo: Architecture, tmp_path: Path) -> None:
    folder = shutil.copytree(MODEL_DIR, tmp_path / "demo")
    file = folder / "unet/config.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {"sample_size": [values["sample_size"]] * 2}))
    assert read_architecture(locate(str(folder)), None, None) == demo
