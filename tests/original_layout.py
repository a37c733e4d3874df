"""Writes a diffusers folder as one file in the original Stable Diffusion layout.

The names are those of CompVis' latent-diffusion code, in which checkpoints are passed around.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.resnets.1": "middle_block.2",
}
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}


# Names of OpenCLIP's text transformer, which Stable Diffusion 2 has.
_OPENCLIP = {
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.embeddings.token_embedding": "token_embedding",
    "text_model.final_layer_norm": "ln_final",
    "text_model.encoder.layers": "transformer.resblocks",
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def write_single_file(
    model: Path, file: Path, *, text: str = "clip", layers: int = 1, blocks: int = 4
) -> Path:
    """`layers` and `blocks` are the model's layers_per_block and number of resolutions.

    `text` is "clip", as in Stable Diffusion 1, or "openclip", as in 2.
    """
    encoder = load_file(model / "text_encoder/model.safetensors")
    prefix = "cond_stage_model.model." if text == "openclip" else "cond_stage_model.transformer."
    named = dict(_as_openclip(encoder)) if text == "openclip" else encoder
    tensors: dict[str, np.ndarray] = {prefix + name: value for name, value in named.items()}
    unet = dict(_unet_prefixes(layers, blocks))
    for name, value in _read(model, "unet").items():
        tensors[f"model.diffusion_model.{_renamed(name, unet)}"] = value
    vae = dict(_vae_prefixes(layers, blocks))
    for name, value in _read(model, "vae").items():
        is_projection = ".attentions." in name and "group_norm" not in name and value.ndim == 2
        original = _renamed(name, vae)
        tensors[f"first_stage_model.{original}"] = (
            value[:, :, None, None] if is_projection else value
        )
    save_file(tensors, file)
    return file


def _as_openclip(weights: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Renames, and packs queries, keys and values of a layer into one."""
    for name, value in weights.items():
        here, _, kind = name.partition(".self_attn.q_proj.")
        renamed = here
        for theirs, ours in _OPENCLIP.items():
            renamed = renamed.replace(theirs, ours)
        if kind:
            parts = [weights[f"{here}.self_attn.{one}_proj.{kind}"] for one in "qkv"]
            yield f"{renamed}.attn.in_proj_{kind}", np.concatenate(parts)
        elif ".k_proj." not in name and ".v_proj." not in name:
            yield renamed, value


def _read(model: Path, part: str) -> dict[str, Any]:
    weights: dict[str, Any] = load_file(model / part / "diffusion_pytorch_model.safetensors")
    return weights


def _renamed(name: str, prefixes: dict[str, str]) -> str:
    for prefix in sorted(prefixes, key=len, reverse=True):
        if name == prefix or name.startswith(f"{prefix}."):
            return prefixes[prefix] + name[len(prefix) :]
    return name


def _unet_prefixes(layers: int, blocks: int) -> Iterator[tuple[str, str]]:
    for diffusers, original in _UNET_ENDS.items():
        if ".resnets." in diffusers:
            yield from ((f"{diffusers}.{a}", f"{original}.{b}") for a, b in _RESNET.items())
        else:
            yield diffusers, original
    for block in range(blocks):
        for layer in range(layers):
            number = 1 + block * (layers + 1) + layer
            here = f"down_blocks.{block}"
            for a, b in _RESNET.items():
                yield f"{here}.resnets.{layer}.{a}", f"input_blocks.{number}.0.{b}"
            yield f"{here}.attentions.{layer}", f"input_blocks.{number}.1"
        end = (block + 1) * (layers + 1)
        yield f"down_blocks.{block}.downsamplers.0.conv", f"input_blocks.{end}.0.op"
        for layer in range(layers + 1):
            number = block * (layers + 1) + layer
            here = f"up_blocks.{block}"
            for a, b in _RESNET.items():
                yield f"{here}.resnets.{layer}.{a}", f"output_blocks.{number}.0.{b}"
            yield f"{here}.attentions.{layer}", f"output_blocks.{number}.1"
        end = block * (layers + 1) + layers
        position = 1 if block == 0 else 2  # the innermost block has no attention before it
        yield f"up_blocks.{block}.upsamplers.0.conv", f"output_blocks.{end}.{position}.conv"


def _vae_prefixes(layers: int, blocks: int) -> Iterator[tuple[str, str]]:
    for side in ("encoder", "decoder"):
        yield f"{side}.conv_norm_out", f"{side}.norm_out"
        for number in (0, 1):
            yield f"{side}.mid_block.resnets.{number}", f"{side}.mid.block_{number + 1}"
        for a, b in _VAE_ATTENTION.items():
            yield f"{side}.mid_block.attentions.0.{a}", f"{side}.mid.attn_1.{b}"
    for block in range(blocks):
        down, up = f"encoder.down.{block}", f"decoder.up.{blocks - 1 - block}"
        for layer in range(layers + 1):
            for a, b in (("", ""), (".conv_shortcut", ".nin_shortcut")):
                yield (
                    f"encoder.down_blocks.{block}.resnets.{layer}{a}",
                    f"{down}.block.{layer}{b}",
                )
                yield f"decoder.up_blocks.{block}.resnets.{layer}{a}", f"{up}.block.{layer}{b}"
        yield f"encoder.down_blocks.{block}.downsamplers.0", f"{down}.downsample"
        yield f"decoder.up_blocks.{block}.upsamplers.0", f"{up}.upsample"
