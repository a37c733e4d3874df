"""Writes a full-size stand-in for Stable Diffusion 2.1: ``python benchmarks/make_sd21.py OUT``.

Architecture, names and folder layout are those of the published model; the weights are seeded
noise, because the published ones cannot be had everywhere. So sizes, seconds, memory and
quantization errors can be measured, but not the quality of pictures. The same commands take the
published folder instead.

Plain noise would be too easy to quantize. What real models show is added without changing what a
layer computes: a channel's gain is multiplied and the weights that read it are divided by the same
factor, which is SmoothQuant (Xiao et al. 2023, arXiv 2211.10438) run backwards.

- Heavy-tailed channels at the inputs of attention and feed-forward layers: about one channel in a
  hundred, factors log-normal between 4 and 40 (outliers of one or two orders of magnitude, as
  Q-Diffusion, arXiv 2302.04304, and MixDQ, arXiv 2405.17873, report for diffusion UNets).
- The same at the inputs of the residual blocks' convolutions, where the activation function between
  normalization and convolution makes it hold nearly instead of exactly.
- The text encoder's first token: activations about 823 against 10 to 15 elsewhere, whatever the
  prompt (MixDQ, section 4). It comes from a channel that only the first position's embedding writes
  to, and a large gain of the last normalization; what was reached is printed.
"""

import argparse
import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

SEED = 0
VOCABULARY = 49408
START, END = "<|startoftext|>", "<|endoftext|>"
OUTLIER_SHARE = 0.01
FIRST_TOKEN_PEAK = 823.0
OTHER_TOKENS_GAIN = 3.0  # the largest of normal values over all tokens is then 12 to 15
DTYPES = {"fp16": torch.float16, "fp32": torch.float32}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="the folder to write, which must not exist")
    parser.add_argument("--variant", choices=["base", "v"], default="base",
                        help="base: 512 pixels, epsilon; v: 768 pixels, v prediction")  # fmt: skip
    parser.add_argument("--dtype", choices=list(DTYPES), default="fp16")
    options = parser.parse_args()
    write(options.out, options.variant, DTYPES[options.dtype])


def write(out: Path, variant: str, dtype: torch.dtype) -> None:
    """Writes the folder, one component in memory at a time."""
    out.mkdir(parents=True)
    size = {"base": 64, "v": 96}[variant]
    torch.set_default_dtype(dtype)
    parts = {"unet": _unet, "vae": _vae, "text_encoder": _text_encoder, "tiny_decoder": _tiny}
    for offset, (name, build) in enumerate(parts.items()):
        torch.manual_seed(SEED + offset)
        component = build(size)
        component.save_pretrained(out / name)
        print(f"{name}: {sum(p.numel() for p in component.parameters()) / 1e6:.1f} M parameters")
        if name == "text_encoder":
            print(_first_token(component))
        del component
    _write_tokenizer(out / "tokenizer")
    _write_json(out / "scheduler/scheduler_config.json", _scheduler(variant))
    _write_json(out / "model_index.json", _index(variant))


def _unet(size: int) -> Any:
    unet = UNet2DConditionModel(
        sample_size=size,
        block_out_channels=(320, 640, 1280, 1280),
        layers_per_block=2,
        attention_head_dim=(5, 10, 20, 20),
        cross_attention_dim=1024,
        use_linear_projection=True,
        upcast_attention=size == 96,
    )
    for norm, readers in _normalized_inputs(unet):
        _add_outliers(norm, readers)
    return unet


def _normalized_inputs(unet: Any) -> Iterator[tuple[Any, list[Any]]]:
    """Each normalization before weights, and the layers that read its output."""
    for module in unet.modules():
        if type(module).__name__ == "ResnetBlock2D":
            yield module.norm1, [module.conv1]
            yield module.norm2, [module.conv2]
        if type(module).__name__ == "BasicTransformerBlock":
            yield module.norm1, [module.attn1.to_q, module.attn1.to_k, module.attn1.to_v]
            yield module.norm2, [module.attn2.to_q]
            yield module.norm3, [module.ff.net[0].proj]


def _add_outliers(norm: Any, readers: list[Any]) -> None:
    channels = len(norm.weight)
    chosen = torch.randperm(channels)[: max(round(channels * OUTLIER_SHARE), 1)]
    factors = torch.exp(torch.randn(len(chosen), dtype=torch.float32) * 0.6 + 2.3).clamp(4, 40)
    with torch.no_grad():
        norm.weight[chosen] *= factors.to(norm.weight.dtype)
        norm.bias[chosen] *= factors.to(norm.bias.dtype)
        for reader in readers:
            shape = (-1,) + (1,) * (reader.weight.ndim - 2)
            reader.weight[:, chosen] /= factors.to(reader.weight.dtype).reshape(shape)


def _vae(size: int) -> Any:
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        sample_size=size * 8,
    )


def _tiny(size: int) -> Any:
    """As TAESD has it, which pipelines do not list among their parts."""
    del size
    return AutoencoderTiny()


def _text_encoder(size: int) -> Any:
    del size
    model = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=VOCABULARY,
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=23,
            num_attention_heads=16,
            hidden_act="gelu",
            projection_dim=512,
            bos_token_id=VOCABULARY - 2,
            eos_token_id=VOCABULARY - 1,
            pad_token_id=0,
        )
    )
    text = getattr(model, "text_model", model)
    channel = 7
    with torch.no_grad():
        # Nothing writes to the channel but the first position, where it outweighs all others:
        # normalization makes it sqrt(1024) there and next to nothing elsewhere.
        text.embeddings.token_embedding.weight[:, channel] = 0.0
        text.embeddings.position_embedding.weight[:, channel] = 0.0
        text.embeddings.position_embedding.weight[0, channel] = 200.0
        for layer in text.encoder.layers:
            for writer in (layer.self_attn.out_proj, layer.mlp.fc2):
                writer.weight[channel] = 0.0
                writer.bias[channel] = 0.0
        text.final_layer_norm.weight.fill_(OTHER_TOKENS_GAIN)
        text.final_layer_norm.weight[channel] = FIRST_TOKEN_PEAK / 1024**0.5
    return model


def _first_token(model: Any) -> str:
    """Says how large the first token's activations are, and the others'."""
    tokens = torch.randint(0, VOCABULARY - 2, (1, 77))
    tokens[0, 0] = VOCABULARY - 2
    with torch.no_grad():
        hidden = model.float()(tokens).last_hidden_state[0].abs()
    return f"text encoder: first token up to {hidden[0].max():.0f}, others {hidden[1:].max():.1f}"


def _scheduler(variant: str) -> dict[str, Any]:
    shared = {
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": False,
        "num_train_timesteps": 1000,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
    }
    name, prediction = {
        "base": ("PNDMScheduler", "epsilon"),
        "v": ("DDIMScheduler", "v_prediction"),
    }[variant]
    return {"_class_name": name, "prediction_type": prediction} | shared


def _index(variant: str) -> dict[str, Any]:
    return {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", _scheduler(variant)["_class_name"]],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def _write_tokenizer(folder: Path) -> None:
    """CLIP's kind of BPE with as many entries as the real one: bytes, then syllables of letters."""
    folder.mkdir()
    symbols = _byte_symbols()
    words = [*symbols, *(symbol + "</w>" for symbol in symbols)]
    wanted = VOCABULARY - 2 - len(words)
    merges = [pair for pair, _ in zip(_merges(), range(wanted), strict=False)]
    vocabulary = {word: index for index, word in enumerate(words)}
    for first, second in merges:
        vocabulary[first + second] = len(vocabulary)
    for token in (START, END):
        vocabulary[token] = len(vocabulary)
    if len(vocabulary) != VOCABULARY:
        raise AssertionError(f"{len(vocabulary)} entries instead of {VOCABULARY}")
    _write_json(folder / "vocab.json", vocabulary)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    _write_json(
        folder / "tokenizer_config.json",
        {
            "bos_token": START,
            "eos_token": END,
            "unk_token": END,
            "pad_token": "!",
            "model_max_length": 77,
            "tokenizer_class": "CLIPTokenizer",
        },
    )


def _byte_symbols() -> list[str]:
    """The printable stand-ins of the 256 bytes, as GPT-2 and CLIP have them."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]


def _merges() -> Iterator[tuple[str, str]]:
    """Syllables of two, three and four letters, each first inside a word and then at its end."""
    letters = "etaoinshrdlcumwfgypbvkjxqz"
    ends = ("", "</w>")
    for first, second in product(letters, repeat=2):
        yield from ((first, second + end) for end in ends)
    for first, second, third in product(letters, repeat=3):
        yield from ((first + second, third + end) for end in ends)
    for first, second, third, fourth in product(letters, repeat=4):
        yield from ((first + second, third + fourth + end) for end in ends)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
