"""Weights from folders and single files, LoRA fused: diffusers' own pipeline is the witness."""

import json
import shutil
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
import torch
from click.testing import CliRunner
from diffusers import StableDiffusionPipeline
from original_layout import write_single_file
from safetensors.torch import load_file, save_file

from sdcompress.checkpoint import load_component, require_fusable, stored_dtype
from sdcompress.cli import main
from sdcompress.demo import MODEL_DIR
from sdcompress.errors import ConversionError, SourceError
from sdcompress.ir import IR_NAME
from sdcompress.source import locate

PARTS = ("unet", "vae_decoder", "text_encoder")


@pytest.fixture(scope="module")
def single_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_single_file(MODEL_DIR, tmp_path_factory.mktemp("single") / "demo.safetensors")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's folder without its weights."""
    folder = tmp_path_factory.mktemp("settings") / "demo"
    shutil.copytree(MODEL_DIR, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


@pytest.fixture(scope="module")
def openclip_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As Stable Diffusion 2.1 is published: with a projection and a last block that nobody uses."""
    file = tmp_path_factory.mktemp("openclip") / "demo.safetensors"
    weights = load_file(write_single_file(MODEL_DIR, file, text="openclip"))
    stem = "cond_stage_model.model."
    last = {
        name.replace("resblocks.2.", "resblocks.23."): torch.full_like(value, torch.nan)
        for name, value in weights.items()
        if name.startswith(f"{stem}transformer.resblocks.2.")
    }
    assert len(last) == 12
    unused = {f"{stem}text_projection": torch.zeros(128, 128, dtype=torch.float16)}
    unused[f"{stem}logit_scale"] = torch.tensor(4.6, dtype=torch.float16)
    save_file(weights | last | unused, file)
    return file


@pytest.mark.parametrize("layout", ["single_file", "openclip_file"])
@pytest.mark.parametrize("part", PARTS)
def test_a_single_file_holds_the_folders_weights(
    part: str, layout: str, settings: Path, request: pytest.FixtureRequest
) -> None:
    source = locate(str(request.getfixturevalue(layout)), config=str(settings))
    found = load_component(source, part, stored=True).state_dict()
    expected = load_component(locate("demo"), part, stored=True).state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name].reshape(value.shape), value), name


def test_a_single_file_needs_settings(single_file: Path) -> None:
    with pytest.raises(SourceError, match="set the recipe's `config`"):
        locate(str(single_file))


def test_what_is_no_whole_model_is_named(tmp_path: Path, settings: Path) -> None:
    file = tmp_path / "part.safetensors"
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(1)}, file)
    with pytest.raises(SourceError, match="LoRA files go to `loras`"):
        locate(str(file), config=str(settings))


def test_the_revision_changes_with_weights_and_settings(
    single_file: Path, settings: Path, tmp_path: Path
) -> None:
    before = locate(str(single_file), config=str(settings)).revision
    other = shutil.copytree(settings, tmp_path / "other")
    scheduler = other / "scheduler/scheduler_config.json"
    scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | {"steps_offset": 0}))
    assert locate(str(single_file), config=str(other)).revision != before


def test_mixed_types_are_loaded_as_the_widest(tmp_path: Path) -> None:
    folder = shutil.copytree(MODEL_DIR, tmp_path / "demo")
    file = folder / "vae/diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    first = next(iter(weights))
    save_file(weights | {first: weights[first].float()}, file)
    source = locate(str(folder))
    assert stored_dtype(source, "vae") == torch.float32
    assert stored_dtype(source, "unet") == torch.float16


def test_integer_weights_are_refused_by_name(tmp_path: Path) -> None:
    folder = shutil.copytree(MODEL_DIR, tmp_path / "demo")
    file = folder / "unet/diffusion_pytorch_model.safetensors"
    save_file({name: w.to(torch.float8_e4m3fn) for name, w in load_file(file).items()}, file)
    with pytest.raises(ConversionError, match="F8_E4M3"):
        stored_dtype(locate(str(folder)), "unet")


def lora_weights(rank: int = 4) -> dict[str, torch.Tensor]:
    """A LoRA on two layers of the UNet and two of the text encoder, as diffusers saves them."""
    source = locate("demo")
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for part, layers in (
        ("unet", ("mid_block.attentions.0.transformer_blocks.0.attn2.to_k",
                  "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q")),
        ("text_encoder", ("text_model.encoder.layers.0.self_attn.q_proj",
                          "text_model.encoder.layers.0.self_attn.out_proj")),
    ):  # fmt: skip
        model = load_component(source, part, stored=True)
        for layer in layers:
            out, into = model.get_submodule(layer).weight.shape
            for name, shape in (("lora_A", (rank, into)), ("lora_B", (out, rank))):
                values = torch.randn(shape, generator=generator) * 0.3
                weights[f"{part}.{layer}.{name}.weight"] = values
    return weights


def kohya(weights: dict[str, torch.Tensor], alpha: float) -> dict[str, torch.Tensor]:
    """The same in the names of kohya's trainer."""
    short = {"lora_A": "lora_down", "lora_B": "lora_up"}
    renamed = {}
    for name, value in weights.items():
        part, layer = name.split(".", 1)
        layer, kind = layer.removesuffix(".weight").rsplit(".", 1)
        prefix = "lora_unet_" if part == "unet" else "lora_te_"
        stem = prefix + layer.replace(".", "_")
        renamed[f"{stem}.{short[kind]}.weight"] = value
        renamed[f"{stem}.alpha"] = torch.tensor(alpha)
    return renamed


@pytest.mark.parametrize("naming", ["diffusers", "kohya"])
def test_a_lora_is_fused_as_diffusers_does(naming: str, tmp_path: Path) -> None:
    file = tmp_path / "style.safetensors"
    weights = lora_weights()
    save_file(weights if naming == "diffusers" else kohya(weights, 2.0), file)
    pipeline = StableDiffusionPipeline.from_pretrained(MODEL_DIR, torch_dtype=torch.float32)
    pipeline.load_lora_weights(tmp_path, weight_name=file.name)
    pipeline.fuse_lora(lora_scale=0.7)
    pipeline.unload_lora_weights()
    source = locate("demo", loras=[(str(file), 0.7)])
    changed = 0
    for part in ("unet", "text_encoder"):
        plain = load_component(locate("demo"), part, stored=False).state_dict()
        found = load_component(source, part, stored=False).state_dict()
        expected = getattr(pipeline, part).state_dict()
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-5)
            changed += not torch.equal(found[name], plain[name])
    assert changed == 4


def test_a_fused_lora_in_half_precision_keeps_its_type(tmp_path: Path) -> None:
    file = tmp_path / "style.safetensors"
    save_file(lora_weights(), file)
    unet = load_component(locate("demo", loras=[(str(file), 1.0)]), "unet", stored=True)
    assert {value.dtype for value in unet.state_dict().values()} == {torch.float16}


def test_a_lora_for_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    save_file({"transformer.blocks.0.attn.to_q.lora_A.weight": torch.zeros(4, 4)}, file)
    with pytest.raises(ConversionError, match="is no layer of UNet or text encoder"):
        require_fusable(locate("demo", loras=[(str(file), 1.0)]))


@pytest.mark.parametrize(
    ("name", "words"), [("missing.safetensors", "no such file"), ("pickle.pt", "only .safetensors")]
)
def test_unusable_lora_files_say_why(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "pickle.pt").write_bytes(b"")
    with pytest.raises(SourceError, match=words):
        locate("demo", loras=[(str(tmp_path / name), 1.0)])


def test_two_loras_are_fused_one_after_the_other(tmp_path: Path) -> None:
    file = tmp_path / "style.safetensors"
    save_file(lora_weights(), file)
    twice = locate("demo", loras=[(str(file), 0.3), (str(file), 0.4)])
    once = locate("demo", loras=[(str(file), 0.7)])
    for part in ("unet", "text_encoder"):
        found = load_component(twice, part, stored=False).state_dict()
        for name, value in load_component(once, part, stored=False).state_dict().items():
            torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("layer", "width"), [("attentions.0", 999), ("attentions.9", 128)], ids=["shape", "name"]
)
def test_a_lora_of_another_architecture_is_named(layer: str, width: int, tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    stem = f"unet.mid_block.{layer}.transformer_blocks.0.attn2.to_k"
    matrices = {"lora_A": torch.zeros(4, width), "lora_B": torch.zeros(144, 4)}
    save_file({f"{stem}.{kind}.weight": value for kind, value in matrices.items()}, file)
    with pytest.raises(ConversionError, match=r"other\.safetensors: cannot be fused"):
        load_component(locate("demo", loras=[(str(file), 1.0)]), "unet", stored=True)


def test_a_lora_that_fits_in_part_only_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    weights = lora_weights()
    for kind in ("lora_A", "lora_B"):
        weights[f"unet.down_blocks.7.attentions.0.proj_in.{kind}.weight"] = torch.zeros(4, 4)
    save_file(weights, file)
    with pytest.raises(ConversionError, match="3 layers, of which this model has 2"):
        load_component(locate("demo", loras=[(str(file), 1.0)]), "unet", stored=True)


def test_settings_of_another_model_are_named(
    single_file: Path, settings: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(settings, tmp_path / "other")
    config = other / "unet/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"cross_attention_dim": 96}))
    source = locate(str(single_file), config=str(other))
    with pytest.raises(ConversionError, match="`config` has to name a model"):
        load_component(source, "unet", stored=True)


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        ("demo", {"config": "somewhere"}, "`config` is for models that are a single file"),
        ("file", {"config": "no such folder"}, "neither an existing folder nor a hub id"),
        ("file", {"variant": "fp16"}, "`variant` chooses among those of a folder"),
    ],
)
def test_options_that_do_not_apply_are_refused(
    model: str, options: dict[str, str], words: str, single_file: Path
) -> None:
    with pytest.raises(SourceError, match=words):
        locate(str(single_file) if model == "file" else model, **options)  # type: ignore[arg-type]


def test_a_single_file_with_a_lora_is_converted_without_rounding(
    single_file: Path, settings: Path, tmp_path: Path, isolated: list[str]
) -> None:
    """All the way through the command; PyTorch on the fused weights is the witness."""
    lora, folder = tmp_path / "style.safetensors", tmp_path / "ir"
    save_file(lora_weights(), lora)
    arguments = ["convert", str(single_file), str(folder), "--config", str(settings)]
    done = CliRunner().invoke(main, [*arguments, "--lora", str(lora), "0.5"])
    assert done.exit_code == 0, done.output
    assert isolated == ["convert"]
    source = locate("demo", loras=[(str(lora), 0.5)])
    random = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 4, 16, 16, generator=random)
    text = torch.randn(2, 77, 128, generator=random)
    tokens = torch.randint(0, 200, (1, 77), generator=random)
    pixels = torch.rand(1, 3, 128, 128, generator=random) * 2 - 1
    unet, vae, encoder = (
        load_component(source, part, stored=True).float()
        for part in ("unet", "vae_decoder", "text_encoder")
    )
    with torch.no_grad():
        expected = {
            "unet": unet(latents, torch.tensor(500), text).sample,
            "text_encoder": encoder(tokens).last_hidden_state,
            "vae_decoder": vae.decode(latents[:1]).sample,
            "vae_encoder": vae.encode(pixels).latent_dist.parameters,
        }
    feeds = {
        "unet": {"sample": latents, "timestep": torch.tensor(500), "encoder_hidden_states": text},
        "text_encoder": {"input_ids": tokens},
        "vae_decoder": {"latent_sample": latents[:1]},
        "vae_encoder": {"sample": pixels},
    }
    for component, feed in feeds.items():
        xml = folder / component / IR_NAME
        compiled = ov.Core().compile_model(xml, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        found = compiled({name: value.numpy() for name, value in feed.items()})[0]
        scale = expected[component].abs().max().item()
        np.testing.assert_allclose(found, expected[component].numpy(), atol=2e-4 * scale)
