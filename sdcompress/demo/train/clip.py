"""Trains the miniature CLIP, the scorer behind the demo's CLIP score.

Contrastive as CLIP (arXiv:2103.00020), with captions that differ in one attribute as additional
negatives, because telling those apart is what the score is for.
"""

import random
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
)

from sdcompress.demo.grammar import caption, change_one_attribute
from sdcompress.demo.train.checkpoint import Job, device, run
from sdcompress.demo.train.data import batch
from sdcompress.demo.train.tokenizer import MAX_TOKENS

_NEGATIVES = 3
_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)


def text_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    """Returns the configuration shared by the pipeline's text encoder and CLIP's text tower."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        hidden_act="gelu",
        projection_dim=128,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


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
    return CLIPModel(config)


def job(folder: Path, steps: int) -> Job:
    return Job("clip", steps, batch=64, learning_rate=1e-3, folder=folder)


def train(plan: Job, tokenizer: CLIPTokenizer) -> CLIPModel:
    """Trains images against their captions and `_NEGATIVES` hard distractors each."""
    torch.manual_seed(1)
    place = device()
    model = build(tokenizer).to(place)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.02)

    def step(index: int) -> float:
        pixels, texts = _examples(index, plan.batch)
        tokens = tokenizer(texts, padding=True, return_tensors="pt").to(place)
        with torch.autocast(place.type, torch.bfloat16):
            out = model(pixel_values=normalize(pixels).to(place), **tokens)
        logits = (out.image_embeds.float() @ out.text_embeds.float().T) * model.logit_scale.exp()
        target = torch.arange(plan.batch, device=place)
        loss = functional.cross_entropy(logits, target)
        loss = loss + functional.cross_entropy(logits[:, : plan.batch].T, target)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            model.logit_scale.clamp_(max=4.6052)  # at most 100, as CLIP
        return float(loss.detach())

    run(plan, {"model": model}, optimizer, step)
    return model


def normalize(pixels: torch.Tensor) -> torch.Tensor:
    """Turns pixels in -1..1 into CLIP's normalisation."""
    return ((pixels + 1) / 2 - _MEAN) / _STD


def _examples(index: int, count: int) -> tuple[torch.Tensor, list[str]]:
    examples, pixels = batch(20_000_000 + index * count, count)
    rng = random.Random(index)  # noqa: S311 - reproducible, not secret
    texts = [one.caption for one in examples]
    for _ in range(_NEGATIVES):
        texts += [caption(change_one_attribute(one.scene, rng), rng) for one in examples]
    return torch.from_numpy(pixels), texts


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
