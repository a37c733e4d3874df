"""Measures the demo: ``python -m sdcompress.demo.measure`` writes the card's figures.

Pictures are drawn by diffusers from the fp16 folders as they ship (computed in float32), always for
the same held-out prompts and seeds. Noise added to the UNet's weights shows that the yardstick,
checker and CLIP score, falls as damage grows.
"""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
)
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from sdcompress.demo import CLIP_DIR, MODEL_DIR, TINY_DECODER_DIR
from sdcompress.demo.checker import check
from sdcompress.demo.grammar import (
    Scene,
    caption,
    change_one_attribute,
    sample_split,
)
from sdcompress.demo.render import render
from sdcompress.quiet import quiet_libraries

STEPS = 25
GUIDANCE_SCALE = 5.0
NOISE_LEVELS = (0.0, 0.01, 0.03, 0.10, 0.30)
FIGURES = Path(__file__).parent / "figures.json"
_PICTURES_AT_ONCE = 20
_FIRST_SEED = 1000
_RENDER_SEED = 77

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Drawing:
    """How well pictures show their prompts. Accuracies are shares of pictures, 0 to 1."""

    weight_noise: float
    accuracy_one_object: float
    accuracy_two_objects: float
    clip_score: float


@dataclass(frozen=True)
class Figures:
    """Everything measured; `renders` counts the held-out renders behind the figures on renders."""

    prompts: int
    steps: int
    guidance_scale: float
    drawings: tuple[Drawing, ...]
    renders: int
    checker_accepts_renders: float
    checker_accepts_wrong_captions: float
    clip_picks_of_16: float
    vae_renders_accepted: float
    vae_psnr_db: float
    tiny_decoder_psnr_db: float


def held_out_prompts(count: int) -> list[str]:
    """Returns `count` held-out captions, half of them of one object, the same ones always."""
    rng = random.Random(2024)  # noqa: S311 - reproducible, not secret
    scenes = [sample_split(rng, held_out=True, objects=1 + index % 2) for index in range(count)]
    return [caption(scene, rng) for scene in scenes]


def load_pipeline(folder: Path = MODEL_DIR) -> StableDiffusionPipeline:
    """Loads the demo as SD 2.1 is loaded, with DPM-Solver++ and in float32."""
    with quiet_libraries("diffusers"):
        pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to("cuda" if torch.cuda.is_available() else "cpu")


def draw(pipeline: StableDiffusionPipeline, prompts: Sequence[str]) -> Array:
    """Draws one picture for each prompt, uint8 [n, 128, 128, 3]; picture i has its own seed."""
    pictures = []
    for first in range(0, len(prompts), _PICTURES_AT_ONCE):
        part = list(prompts[first : first + _PICTURES_AT_ONCE])
        seeds = range(_FIRST_SEED + first, _FIRST_SEED + first + len(part))
        drawn = pipeline(
            part,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE_SCALE,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            output_type="np",
        ).images
        pictures.append((drawn * 255).round().astype(np.uint8))
    return np.concatenate(pictures)


def add_noise(unet: torch.nn.Module, level: float) -> None:
    """Adds noise of `level` times each weight tensor's own root mean square; seeded."""
    generator = torch.Generator("cpu").manual_seed(0)
    with torch.no_grad():
        for weight in unet.parameters():
            if weight.ndim < 2:
                continue  # biases and norms stay, as in weight quantization
            noise = torch.randn(weight.shape, generator=generator).to(weight)
            weight.add_(level * weight.square().mean().sqrt() * noise)


def accuracy(pictures: Array, prompts: Sequence[str]) -> float:
    """Returns the share of pictures that the checker accepts."""
    verdicts = [check(one, text).ok for one, text in zip(pictures, prompts, strict=True)]
    return sum(verdicts) / len(verdicts)


class Scorer:
    """The demo's CLIP, loaded once."""

    def __init__(self, folder: Path = CLIP_DIR) -> None:
        with quiet_libraries("transformers"):
            self._model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
            self._processor = CLIPProcessor.from_pretrained(folder, backend="pil")

    def cosines(self, pictures: Array, texts: Sequence[str]) -> Array:
        """Returns the cosine of every picture with every text, float32 [pictures, texts]."""
        inputs = self._processor(
            text=list(texts),
            images=[Image.fromarray(one) for one in pictures],
            padding=True,
            return_tensors="pt",
        )
        with torch.inference_mode():
            out = self._model(**inputs)
        cosines: Array = (out.image_embeds @ out.text_embeds.T).numpy()
        return cosines

    def score(self, pictures: Array, prompts: Sequence[str]) -> float:
        """Returns the mean CLIP score of pictures with their own prompts, 0 to 100."""
        own = [
            self.cosines(pictures[index : index + 1], [text])[0, 0]
            for index, text in enumerate(prompts)
        ]
        return float(100 * np.clip(own, 0, None).mean())


def measure_drawing(
    model: Path, scorer: Scorer, count: int, levels: Sequence[float], say: Callable[[str], None]
) -> tuple[Drawing, ...]:
    """Draws the held-out prompts once for each noise level."""
    prompts = held_out_prompts(count)
    results = []
    for level in levels:
        pipeline = load_pipeline(model)
        if level:
            add_noise(pipeline.unet, level)
        pictures = draw(pipeline, prompts)
        results.append(
            Drawing(
                weight_noise=level,
                accuracy_one_object=accuracy(pictures[::2], prompts[::2]),
                accuracy_two_objects=accuracy(pictures[1::2], prompts[1::2]),
                clip_score=scorer.score(pictures, prompts),
            )
        )
        say(str(results[-1]))
    return tuple(results)


def held_out_renders(count: int) -> list[tuple[Scene, Array]]:
    """Renders `count` held-out scenes, uint8 [128, 128, 3] each."""
    rng = random.Random(_RENDER_SEED)  # noqa: S311 - reproducible, not secret
    scenes = [sample_split(rng, held_out=True) for _ in range(count)]
    return [(scene, np.asarray(render(scene, rng))) for scene in scenes]


def wrong_captions(scene: Scene, count: int, rng: random.Random) -> list[str]:
    """Returns `count` different captions that are each wrong in one attribute."""
    texts: list[str] = []
    while len(texts) < count:
        text = caption(change_one_attribute(scene, rng), rng)
        if text not in texts:
            texts.append(text)
    return texts


def clip_choice(scorer: Scorer, renders: Sequence[tuple[Scene, Array]]) -> float:
    """Share of renders whose caption beats 15 captions that are each wrong in one attribute."""
    rng = random.Random(_RENDER_SEED)  # noqa: S311 - reproducible, not secret
    hits = 0
    for scene, picture in renders:
        texts = [caption(scene, rng), *wrong_captions(scene, 15, rng)]
        hits += int(scorer.cosines(picture[None], texts).argmax()) == 0
    return hits / len(renders)


def measure_decoders(
    model: Path, tiny: Path, renders: Sequence[tuple[Scene, Array]]
) -> tuple[float, float, float]:
    """Returns the share of VAE round trips the checker accepts, and the PSNR of both decoders.

    The VAE is compared with the renders, the tiny decoder with the VAE's decoder.
    """
    with quiet_libraries("diffusers"):
        vae = AutoencoderKL.from_pretrained(model, subfolder="vae", torch_dtype=torch.float32)
        small = AutoencoderTiny.from_pretrained(tiny, torch_dtype=torch.float32)
    accepted, vae_psnr, tiny_psnr = 0, [], []
    for scene, picture in renders:
        pixels = torch.tensor(picture).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.inference_mode():
            latents = vae.encode(pixels).latent_dist.mode()
            decoded = vae.decode(latents).sample.clamp(-1, 1)
            quick = small.decode(latents * vae.config.scaling_factor).sample.clamp(-1, 1)
        as_bytes = ((decoded[0].permute(1, 2, 0).numpy() + 1) * 127.5).round().astype(np.uint8)
        accepted += check(as_bytes, scene).ok
        vae_psnr.append(_psnr_db(decoded, pixels))
        tiny_psnr.append(_psnr_db(quick, decoded))
    return accepted / len(renders), float(np.mean(vae_psnr)), float(np.mean(tiny_psnr))


def _psnr_db(one: torch.Tensor, other: torch.Tensor) -> float:
    """PSNR of pictures in -1..1, whose range is 2."""
    return float(10 * torch.log10(4 / (one - other).square().mean().clamp(min=1e-10)))


@click.command()
@click.option("--model", type=click.Path(path_type=Path), default=MODEL_DIR)
@click.option("--clip", "clip_dir", type=click.Path(path_type=Path), default=CLIP_DIR)
@click.option("--tiny", type=click.Path(path_type=Path), default=TINY_DECODER_DIR)
@click.option("--prompts", default=200, show_default=True)
@click.option("--renders", default=300, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), default=FIGURES, show_default=True)
def main(model: Path, clip_dir: Path, tiny: Path, prompts: int, renders: int, output: Path) -> None:
    """Measure the demo's folders and write the figures as JSON."""
    scorer = Scorer(clip_dir)
    scenes = held_out_renders(renders)
    rng = random.Random(_RENDER_SEED)  # noqa: S311 - reproducible, not secret
    wrong = [check(picture, wrong_captions(scene, 1, rng)[0]).ok for scene, picture in scenes]
    vae_accepted, vae_psnr_db, tiny_psnr_db = measure_decoders(model, tiny, scenes)
    figures = Figures(
        prompts=prompts,
        steps=STEPS,
        guidance_scale=GUIDANCE_SCALE,
        drawings=measure_drawing(model, scorer, prompts, NOISE_LEVELS, click.echo),
        renders=renders,
        checker_accepts_renders=sum(check(one, scene).ok for scene, one in scenes) / renders,
        checker_accepts_wrong_captions=sum(wrong) / renders,
        clip_picks_of_16=clip_choice(scorer, scenes),
        vae_renders_accepted=vae_accepted,
        vae_psnr_db=vae_psnr_db,
        tiny_decoder_psnr_db=tiny_psnr_db,
    )
    text = json.dumps(asdict(figures), indent=2)
    output.write_text(text + "\n", encoding="utf-8")
    click.echo(text)


if __name__ == "__main__":
    main()
