"""Decoding in tiles against decoding at once, and against diffusers' way to tile."""

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio

from sdcompress.runtime import Economy, Job, Pipeline, Settings
from sdcompress.runtime.tiling import decode_tiled

SCALE = 2


def enlarged(latents: np.ndarray) -> np.ndarray:
    """A decoder without surroundings: every pixel comes from one cell."""
    return latents[:, :3].repeat(SCALE, axis=2).repeat(SCALE, axis=3)


@given(st.integers(1, 70), st.integers(1, 70), st.integers(16, 40), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_nothing_is_changed_where_surroundings_do_not_matter(
    height: int, width: int, tile: int, seed: int
) -> None:
    latents = np.random.default_rng(seed).standard_normal((1, 4, height, width), np.float32)
    shapes = set()

    def decode(part: np.ndarray) -> np.ndarray:
        shapes.add(part.shape)
        return enlarged(part)

    tiled = decode_tiled(decode, latents, tile, SCALE)
    np.testing.assert_allclose(tiled, enlarged(latents), atol=1e-5)
    assert shapes == {(1, 4, min(tile, height), min(tile, width))}  # compiled once


def test_tiles_that_differ_leave_no_seam() -> None:
    """Each tile is darker than the one before, as normalization may make it."""
    shades = iter(np.linspace(0.0, 1.0, 9))

    def decode(part: np.ndarray) -> np.ndarray:
        return np.full_like(enlarged(part), next(shades))

    tiled = decode_tiled(decode, np.zeros((1, 4, 48, 48), np.float32), 20, SCALE)
    assert np.abs(np.diff(tiled[0, 0], axis=1)).max() < 0.125 / 4
    assert np.abs(np.diff(tiled[0, 0], axis=0)).max() < 0.375 / 4


def test_a_picture_in_tiles_is_nearly_the_one_decoded_at_once(baseline: Path) -> None:
    """On the demo's decoder, and hardly further than diffusers' tiles of the same size."""
    import torch
    from diffusers import AutoencoderKL

    from sdcompress.demo import MODEL_DIR

    pipeline = Pipeline.load(baseline, execution_precision="f32", verify="never")
    size = Settings(steps=8, width=256, height=256)
    latents = pipeline.denoise_jobs([Job("a large red circle", seed=3)], size)
    whole = pipeline.decode(latents)[0]
    pipeline.economy = Economy(vae_tile=24)
    ours = peak_signal_noise_ratio(whole, pipeline.decode(latents)[0])
    vae = AutoencoderKL.from_pretrained(MODEL_DIR, subfolder="vae").eval()
    vae.tile_latent_min_size, vae.tile_sample_min_size = 24, 24 * 8
    with torch.no_grad():
        scaled = torch.from_numpy(latents / vae.config.scaling_factor)
        decoded = vae.tiled_decode(scaled).sample[0].permute(1, 2, 0).numpy()
    theirs = np.clip(decoded * 127.5 + 127.5, 0, 255).round().astype(np.uint8)
    assert ours > 30
    assert ours > peak_signal_noise_ratio(whole, theirs) - 1
