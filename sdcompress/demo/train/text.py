"""Trains the text encoder to read captions; the pipeline then uses it frozen, as SD uses CLIP's.

From the end token on, every position has to name the whole scene: the colour, shape and size of
both objects, their relation and the background. That takes minutes, while a text encoder trained
through the UNet's loss learns which word belongs to which object only after hours.
"""

import random
from pathlib import Path

import torch
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from sdcompress.demo.grammar import (
    BACKGROUNDS,
    COLOURS,
    RELATIONS,
    SHAPES,
    SIZES,
    Scene,
    caption,
    sample_split,
)
from sdcompress.demo.train.checkpoint import Job, device, run
from sdcompress.demo.train.tokenizer import MAX_TOKENS

_OBJECT = ((None, *COLOURS), (None, *SHAPES), (None, *SIZES))
_FIELDS: tuple[tuple[str | None, ...], ...] = (
    *_OBJECT, *_OBJECT, (None, *RELATIONS), (None, *BACKGROUNDS)
)  # fmt: skip


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


def job(folder: Path, steps: int) -> Job:
    return Job("text", steps, batch=64, learning_rate=1e-3, folder=folder)


def train(plan: Job, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Trains the encoder with one linear head for each part of a scene, and drops the heads."""
    torch.manual_seed(4)
    place = device()
    model = CLIPTextModel(text_config(tokenizer)).to(place)
    heads = torch.nn.Linear(model.config.hidden_size, sum(len(field) for field in _FIELDS))
    both = torch.nn.ModuleDict({"text": model, "heads": heads.to(place)})
    optimizer = torch.optim.AdamW(
        both.parameters(), lr=plan.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )

    def loss(index: int) -> torch.Tensor:
        ids, wanted = _examples(index, plan.batch, tokenizer)
        return _loss(both, ids.to(place), wanted.to(place), tokenizer.eos_token_id)

    run(plan, {"model": both}, {"optimizer": optimizer}, loss)
    return model.eval()


def _loss(
    both: torch.nn.ModuleDict, ids: torch.Tensor, wanted: torch.Tensor, end: int
) -> torch.Tensor:
    with torch.autocast(ids.device.type, torch.bfloat16):
        states = both["text"](input_ids=ids).last_hidden_state
        logits = both["heads"](states).float()
    complete = (ids == end).cumsum(dim=1) > 0
    rows = wanted[:, None].expand(-1, ids.shape[1], -1)[complete]
    parts = logits[complete].split([len(field) for field in _FIELDS], dim=-1)
    losses = [
        functional.cross_entropy(part, row)
        for part, row in zip(parts, rows.unbind(-1), strict=True)
    ]
    return torch.stack(losses).sum()


def _examples(
    index: int, count: int, tokenizer: CLIPTokenizer
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns token ids [n, 77] and for each caption the index of every field's value [n, 8]."""
    rng = random.Random(f"text {index}")  # noqa: S311 - reproducible, not secret
    scenes = [sample_split(rng, held_out=False) for _ in range(count)]
    texts = [caption(scene, rng) for scene in scenes]
    tokens = tokenizer(texts, padding="max_length", max_length=MAX_TOKENS, return_tensors="pt")
    return tokens.input_ids, torch.tensor([_labels(scene) for scene in scenes])


def _labels(scene: Scene) -> list[int]:
    values: list[str | None] = []
    for position in range(2):
        thing = scene.objects[position] if position < len(scene.objects) else None
        values += [thing.colour, thing.shape, thing.size] if thing else [None] * 3
    values += [scene.relation, scene.background]
    return [field.index(value) for field, value in zip(_FIELDS, values, strict=True)]
