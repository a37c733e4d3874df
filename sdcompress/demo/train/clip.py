"""Trains the miniature CLIP, the scorer behind the demo's CLIP score.

Contrastive as CLIP (arXiv:2103.00020), with captions that differ in one attribute as additional
negatives, because telling those apart is what the score is for. The text tower starts as the text
encoder, which has learned to read; the vision tower names what it sees beside the contrast.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
)

from sdcompress.demo.grammar import caption, change_one_attribute
from sdcompress.demo.train.checkpoint import Job, device, run
from sdcompress.demo.train.data import Example, batch
from sdcompress.demo.train.muon import optimizers
from sdcompress.demo.train.naming import Naming, names
from sdcompress.demo.train.text import text_config

_NEGATIVES = 3
_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)


def build(tokenizer: CLIPTokenizer) -> CLIPModel:
    vision = CLIPVisionConfig(
        hidden_size=160,
        intermediate_size=640,
        num_hidden_layers=4,
        num_attention_heads=5,
        image_size=128,
        patch_size=16,
        hidden_act="gelu",
        projection_dim=128,
    )
    config = CLIPConfig(
        text_config=text_config(tokenizer).to_dict(),
        vision_config=vision.to_dict(),
        projection_dim=128,
    )
    model = CLIPModel(config)
    places = model.vision_model.embeddings.position_embedding.weight
    with torch.no_grad():
        places[1:] = 0.3 * _waves(vision.image_size // vision.patch_size, vision.hidden_size)
    return model


def _waves(side: int, width: int) -> torch.Tensor:
    """Returns sines and cosines of row and column [side * side, width]: which patches are near."""
    angles = torch.arange(side)[:, None] / 100 ** torch.linspace(0, 1, width // 4)
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows = axis[:, None].expand(side, side, -1)
    return torch.cat([rows, rows.transpose(0, 1)], dim=-1).flatten(0, 1)


def job(folder: Path, steps: int) -> Job:
    return Job("clip", steps, batch=64, learning_rate=1e-3, folder=folder)


def train(plan: Job, reader: CLIPTextModel, tokenizer: CLIPTokenizer) -> CLIPModel:
    """Trains images against their captions and `_NEGATIVES` hard distractors each."""
    torch.manual_seed(1)
    place = device()
    model = build(tokenizer)
    model.text_model.load_state_dict(reader.text_model.state_dict())
    model.set_attn_implementation("eager")  # learns twice as fast on CPU as the fused attention
    vision = model.config.vision_config
    naming = Naming(vision.hidden_size, model.config.projection_dim)
    both = torch.nn.ModuleDict({"clip": model, "naming": naming}).to(place)

    def loss(index: int) -> torch.Tensor:
        examples, pixels = batch(20_000_000 + index * plan.batch, plan.batch)
        tokens = tokenizer(_captions(examples, index), padding=True, return_tensors="pt").to(place)
        with torch.autocast(place.type, torch.bfloat16):
            out = model(pixel_values=normalize(torch.from_numpy(pixels)).to(place), **tokens)
            patches = out.vision_model_output.last_hidden_state[:, 1:]
            seen = model.visual_projection(out.vision_model_output.pooler_output)
            named = naming.loss(patches, seen, names(examples, vision.patch_size).to(place))
        return (
            _contrast(out.image_embeds.float(), out.text_embeds.float(), model.logit_scale) + named
        )

    def keep_scale() -> None:
        with torch.no_grad():
            model.logit_scale.clamp_(max=4.6052)  # at most 100, as CLIP

    run(plan, {"model": both}, optimizers(both, plan.learning_rate), loss, after=keep_scale)
    model.set_attn_implementation("sdpa")
    return model


def _contrast(images: torch.Tensor, texts: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
    """Each image [n, d] against all texts [k n, d], each caption against all images, and each image
    against its own caption and distractors alone. Embeddings are of unit length."""
    count = len(images)
    logits = images @ texts.T * log_scale.exp()
    own = logits.view(count, -1, count).diagonal(dim1=0, dim2=2).T
    caption = torch.arange(count, device=images.device)
    return (
        functional.cross_entropy(logits, caption)
        + functional.cross_entropy(logits[:, :count].T, caption)
        + functional.cross_entropy(own, torch.zeros_like(caption))
    )


def normalize(pixels: torch.Tensor) -> torch.Tensor:
    """Turns pixels in -1..1 into CLIP's normalisation."""
    return ((pixels + 1) / 2 - _MEAN) / _STD


def _captions(examples: Sequence[Example], seed: int) -> list[str]:
    """Returns all captions, then a distractor for each, then another for each, and so on."""
    rng = random.Random(seed)  # noqa: S311 - reproducible, not secret
    texts = [one.caption for one in examples]
    for _ in range(_NEGATIVES):
        texts += [caption(change_one_attribute(one.scene, rng), rng) for one in examples]
    return texts


def accuracy(model: CLIPModel, tokenizer: Any, count: int, distractors: int = 15) -> float:
    """Share of held-out renders whose caption beats `distractors` captions off by one attribute."""
    rng = random.Random(7)  # noqa: S311 - reproducible, not secret
    examples, pixels = batch(90_000_000, count, held_out=True)
    hits = 0
    model.eval()
    with torch.no_grad():
        images = model(
            pixel_values=normalize(torch.from_numpy(pixels)),
            **tokenizer([""], padding=True, return_tensors="pt"),
        ).image_embeds
        for example, image in zip(examples, images, strict=True):
            texts = [example.caption]
            while len(texts) <= distractors:
                other = caption(change_one_attribute(example.scene, rng), rng)
                if other not in texts:
                    texts.append(other)
            tokens = tokenizer(texts, padding=True, return_tensors="pt")
            embeds = model(
                pixel_values=normalize(torch.from_numpy(pixels[:1])), **tokens
            ).text_embeds
            hits += int((embeds @ image).argmax()) == 0
    return hits / count
