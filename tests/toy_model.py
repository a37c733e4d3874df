"""A model folder of a few kilobytes, built from OpenVINO operations and a BPE of a few letters.

It draws nothing sensible, but every file is real: the runtime reads, compiles and runs it as it
would a Stable Diffusion folder, without torch and in milliseconds.
"""

import json
from pathlib import Path

import numpy as np
import openvino as ov
from openvino import opset13 as op
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

WIDTH = 8  # of the text embeddings
START, END = "<|startoftext|>", "<|endoftext|>"
_SAMPLE_TEXT = ["a photo of a small red circle above a large blue square", "don't we'll 3 stars!"]


def write_toy_model(
    folder: Path, *, unet_gain: float = 0.5, picture_offset: float = 0.0, batch: int = -1
) -> Path:
    """Write the folder. An infinite gain or offset damages the UNet or the decoder."""
    folder.mkdir(parents=True)
    write_json(folder / "model_index.json", {"_class_name": "StableDiffusionPipeline"})
    vocabulary = write_toy_tokenizer(folder / "tokenizer")
    _save(_text_encoder(vocabulary), folder / "text_encoder", {})
    unet_config = {"sample_size": 4, "in_channels": 4, "block_out_channels": [8, 8]}
    _save(_unet(unet_gain, batch), folder / "unet", unet_config)
    vae_config = {"scaling_factor": 0.18215, "block_out_channels": [8, 8, 8, 8]}
    _save(_vae_decoder(picture_offset), folder / "vae_decoder", vae_config)
    (folder / "scheduler").mkdir()
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    return folder


# The values of Stable Diffusion 2.1-base.
SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}


def write_json(path: Path, values: object) -> None:
    path.write_text(json.dumps(values), encoding="utf-8")


def write_toy_tokenizer(folder: Path, *, padding: str = END, single_file: bool = True) -> int:
    """Train CLIP's kind of BPE on two sentences and write it; returns the vocabulary's size."""
    folder.mkdir(parents=True)
    tokenizer = Tokenizer(models.BPE(unk_token=END, end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    pieces = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pieces, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(_SAMPLE_TEXT * 20, trainer)
    tokenizer.model.save(str(folder))
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    for token in (START, END):
        vocabulary[token] = len(vocabulary)
    write_json(folder / "vocab.json", vocabulary)
    settings = {
        "bos_token": START,
        "eos_token": END,
        "unk_token": END,
        "pad_token": padding,
        "model_max_length": 77,
        "tokenizer_class": "CLIPTokenizer",
    }
    write_json(folder / "tokenizer_config.json", settings)
    if single_file:
        tokenizer.add_special_tokens([START, END])
        tokenizer.model = models.BPE.from_file(
            str(folder / "vocab.json"),
            str(folder / "merges.txt"),
            unk_token=END,
            end_of_word_suffix="</w>",
        )
        tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "vocab.json").unlink()
        (folder / "merges.txt").unlink()
    return len(vocabulary)


def _save(model: ov.Model, folder: Path, config: dict[str, object]) -> None:
    folder.mkdir()
    ov.save_model(model, folder / "openvino_model.xml", compress_to_fp16=False)
    write_json(folder / "config.json", config)


def _text_encoder(vocabulary: int) -> ov.Model:
    ids = op.parameter([-1, -1], ov.Type.i64, name="input_ids")
    table = np.random.default_rng(0).standard_normal((vocabulary, WIDTH)).astype(np.float32)
    hidden = op.gather(op.constant(table), ids, op.constant(np.int64(0)))
    return _named([hidden], ["last_hidden_state"], [ids], ["input_ids"])


def _unet(gain: float, batch: int) -> ov.Model:
    """gain * sample + sin(t) + the text's mean, which depends on all three inputs."""
    sample = op.parameter([batch, 4, -1, -1], ov.Type.f32, name="sample")
    timestep = op.parameter([-1], ov.Type.i64, name="timestep")
    text = op.parameter([batch, 77, WIDTH], ov.Type.f32, name="encoder_hidden_states")
    column = op.constant(np.array([-1, 1, 1, 1]))
    time = op.reshape(op.sin(op.convert(timestep, ov.Type.f32)), column, special_zero=False)
    mean = op.reduce_mean(text, op.constant(np.array([1, 2])), keep_dims=False)
    meaning = op.reshape(mean, column, special_zero=False)
    scaled = op.multiply(sample, op.constant(np.float32(gain)))
    output = op.add(op.add(scaled, time), meaning)
    inputs = [sample, timestep, text]
    names = ["sample", "timestep", "encoder_hidden_states"]
    return _named([output], ["out_sample"], inputs, names)


def _vae_decoder(offset: float) -> ov.Model:
    """Each latent cell becomes 8 x 8 pixels of one colour."""
    latents = op.parameter([-1, 4, -1, -1], ov.Type.f32, name="latent_sample")
    mix = np.random.default_rng(1).standard_normal((3, 4, 1, 1)).astype(np.float32) / 8
    colours = op.convolution(latents, op.constant(mix), [1, 1], [0, 0], [0, 0], [1, 1])
    large = op.interpolate(
        colours, op.constant(np.array([8.0, 8.0], np.float32)), "nearest", "scales",
        axes=op.constant(np.array([2, 3])),
    )  # fmt: skip
    picture = op.add(large, op.constant(np.float32(offset)))
    return _named([picture], ["sample"], [latents], ["latent_sample"])


def _named(
    outputs: list[ov.Node], output_names: list[str], inputs: list[ov.Node], names: list[str]
) -> ov.Model:
    model = ov.Model([op.result(node) for node in outputs], inputs, "toy")
    for port, name in zip(model.inputs, names, strict=True):
        port.get_tensor().set_names({name})
    for port, name in zip(model.outputs, output_names, strict=True):
        port.get_tensor().set_names({name})
    return model
