"""Trains the demo from nothing: ``python -m sdcompress.demo.train --work DIR``.

Parts are trained in order, each resuming from its checkpoint in DIR; a killed run goes on where it
stopped. A GPU is used when there is one; two CPU cores take about three hours.
"""

from pathlib import Path

import click
import torch
from transformers.utils import logging as transformers_logging

from sdcompress.demo import CLIP_DIR, MODEL_DIR, TINY_DECODER_DIR
from sdcompress.demo.train import clip, export, text, tiny, tokenizer, unet, vae

PARTS = ("unet", "clip", "tiny")


@click.command()
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), required=True,
              help="Folder for checkpoints and cached latents.")  # fmt: skip
@click.option("--part", "parts", type=click.Choice(PARTS), multiple=True, default=PARTS,
              help="Train and export only these, after what they build on.")  # fmt: skip
@click.option("--text-steps", default=600, show_default=True)
@click.option("--vae-steps", default=4000, show_default=True)
@click.option("--decoder-steps", default=1500, show_default=True,
              help="Of the VAE's decoder, alone, on whole pictures.")  # fmt: skip
@click.option("--unet-steps", default=6000, show_default=True)
@click.option("--clip-steps", default=4000, show_default=True)
@click.option("--tiny-steps", default=800, show_default=True)
@click.option("--compile", "compiled", is_flag=True,
              help="Compile the larger parts: 1.3 x as fast; needs a C++ compiler.")  # fmt: skip
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), default=None,
              help="Export below this folder instead of the package's own.")  # fmt: skip
def main(
    work: Path, parts: tuple[str, ...], output: Path | None, *, compiled: bool, **steps: int
) -> None:
    """Train the demo's parts and export them."""
    torch.manual_seed(0)
    transformers_logging.set_verbosity_error()
    work.mkdir(parents=True, exist_ok=True)
    words = tokenizer.build(work / "tokenizer")
    model_dir = output / "model" if output else MODEL_DIR
    reader = text.train(text.job(work, steps["text_steps"]), words)
    if "clip" in parts:
        scorer = clip.train(clip.job(work, steps["clip_steps"]), reader, words)
        accuracy = clip.accuracy(scorer, words, 200)
        click.echo(f"clip picks the right caption of 16 for {accuracy:.1%} of held-out renders")
        export.export_clip(scorer, words, output / "clip" if output else CLIP_DIR)
    if not {"unet", "tiny"} & set(parts):
        return
    autoencoder = vae.train(vae.job(work, steps["vae_steps"]))
    latents = unet.encode_training_set(autoencoder, words, work)
    vae.refine(vae.refining_job(work, steps["decoder_steps"]), autoencoder, compiled=compiled)
    if "tiny" in parts:
        decoder = tiny.train(tiny.job(work, steps["tiny_steps"]), latents, autoencoder)
        export.export_tiny(decoder, output / "tiny_decoder" if output else TINY_DECODER_DIR)
    if "unet" in parts:
        network = unet.train(
            unet.job(work, steps["unet_steps"]), latents, reader, words, compiled=compiled
        )
        export.export_pipeline(
            autoencoder, network, reader, words, latents.scaling_factor, model_dir
        )


if __name__ == "__main__":
    main()
