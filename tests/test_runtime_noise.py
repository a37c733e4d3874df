"""Random numbers: torch's own as oracle, and independence of batches."""

import numpy as np
import pytest

from sdcompress.runtime.noise import make_noise

torch = pytest.importorskip("torch")

SHAPES = [(1, 4, 64, 64), (1, 4, 96, 96), (1, 4, 5, 5), (16,), (17,), (3,), (15,), (1,), (2, 7)]


@pytest.mark.parametrize("seed", [0, 42, 2**32 - 1, 2**32 + 5, 2**63 - 1])
def test_the_numbers_of_torch(seed: int) -> None:
    """One after the other, as a pipeline draws them: pairs kept from short calls included."""
    generator, noise = torch.Generator().manual_seed(seed), make_noise("torch", seed)
    for shape in [*SHAPES, *reversed(SHAPES)]:
        expected = torch.randn(shape, generator=generator).numpy()
        actual = noise.normal(shape)
        assert (actual.shape, actual.dtype) == (shape, np.float32)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_the_same_seed_gives_the_same_numbers_and_no_other_does(kind: str) -> None:
    first, again, other = (make_noise(kind, seed).normal((4, 16)) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_numbers_are_standard_normal(kind: str) -> None:
    from scipy.stats import kstest

    values = make_noise(kind, 1).normal((100_000,))
    assert kstest(values, "norm").pvalue > 0.01
