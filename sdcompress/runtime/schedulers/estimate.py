"""What a prediction of the network says: the clean latents and the noise in a noisy sample.

Symbols, the same in every sampler. A noisy sample is x = a * x0 + s * e, with x0 the clean
latents, e standard normal noise and a^2 + s^2 = 1. Its noise level is sigma = s / a. The network
sees x and a timestep t, and predicts e ("epsilon") or v = a * e - s * x0 ("v_prediction"); either
gives x0 and e.
"""

from collections.abc import Callable, Generator

from sdcompress.runtime.arrays import Float32
from sdcompress.runtime.schedulers.levels import signal_and_noise
from sdcompress.runtime.schedulers.plan import Plan

Predict = Callable[[Float32, float], Float32]
FreshNoise = Callable[[], Float32]

# Yields the latents after each call and is sent those to go on with.
Walk = Generator[Float32, Float32, None]
Sampler = Callable[[Plan, Float32, Predict, FreshNoise], Walk]


def split(
    prediction_type: str, x: Float32, sigma: float, output: Float32
) -> tuple[Float32, Float32]:
    """The clean latents x0 and the noise e in x, from the network's output."""
    a, s = signal_and_noise(sigma)
    if prediction_type == "epsilon":
        return x * (1 / a) - output * sigma, output
    return x * a - output * s, output * a + x * s


def combine(clean: Float32, noise: Float32, sigma: float) -> Float32:
    """A sample of clean latents and noise at a level."""
    a, s = signal_and_noise(sigma)
    return clean * a + noise * s
