"""Where random numbers come from: numpy's generator or, number for number, torch's on the CPU."""

import math
from typing import Any, Protocol

import numpy as np

from sdcompress.runtime.arrays import Float32
from sdcompress.runtime.errors import InputError

KINDS = ("numpy", "torch")
_BLOCK = 16  # torch transforms uniform numbers to normal ones in blocks of this many


class Noise(Protocol):
    """A stream of standard normal numbers that belongs to one picture."""

    def normal(self, shape: tuple[int, ...]) -> Float32:
        """The next numbers of the stream."""
        ...


def make_noise(kind: str, seed: int) -> Noise:
    """The stream of a seed; the same seed always gives the same numbers."""
    if seed < 0:
        raise InputError(f"seed is {seed}; it must not be negative.")
    return TorchNoise(seed) if kind == "torch" else NumpyNoise(seed)


class NumpyNoise:
    """numpy's default generator."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def normal(self, shape: tuple[int, ...]) -> Float32:
        return self._random.standard_normal(shape, dtype=np.float32)


class TorchNoise:
    """What `torch.randn(shape, generator=torch.Generator().manual_seed(seed))` draws on the CPU.

    32-bit Mersenne Twister, then Box and Muller's transform. From 16 numbers on torch works in
    single precision on blocks, the last of which it draws anew if it is not full; below that it
    works in double precision on pairs and keeps the second of a pair for the next call (PyTorch,
    aten/src/ATen/native/cpu/DistributionTemplates.h and core/DistributionsHelper.h).
    """

    def __init__(self, seed: int) -> None:
        # numpy's legacy seeding is that of the original implementation, which torch uses too.
        seeded: Any = np.random.RandomState(seed & 0xFFFFFFFF).get_state(legacy=False)
        self._twister = np.random.MT19937()
        self._twister.state = seeded
        self._kept: float | None = None

    def normal(self, shape: tuple[int, ...]) -> Float32:
        count = int(np.prod(shape))
        flat = self._in_pairs(count) if count < _BLOCK else self._in_blocks(count)
        return flat.reshape(shape)

    def _in_blocks(self, count: int) -> Float32:
        values = self._uniform(count)
        rest = count % _BLOCK
        whole = _box_muller(values[: count - rest])
        if not rest:
            return whole
        last = _box_muller(self._uniform(_BLOCK))
        return np.concatenate([whole[: count - _BLOCK], last])

    def _uniform(self, count: int) -> Float32:
        raw = self._twister.random_raw(count)
        return (raw & 0xFFFFFF).astype(np.float32) * np.float32(2**-24)

    def _in_pairs(self, count: int) -> Float32:
        values = []
        for _ in range(count):
            if self._kept is not None:
                value, self._kept = self._kept, None
            else:
                angle, length = self._uniform_double() * 2 * math.pi, self._uniform_double()
                radius = math.sqrt(-2.0 * math.log1p(-length))
                value, self._kept = radius * math.cos(angle), radius * math.sin(angle)
            values.append(value)
        return np.array(values, dtype=np.float32)

    def _uniform_double(self) -> float:
        high, low = self._twister.random_raw(2).tolist()
        return float((high << 32 | low) & (2**53 - 1)) * 2**-53


def _box_muller(uniform: Float32) -> Float32:
    """Blocks of 16 in [0, 1) -> blocks of 16 standard normal numbers."""
    first, second = np.moveaxis(uniform.reshape(-1, 2, _BLOCK // 2), 1, 0)
    radius = np.sqrt(np.float32(-2) * np.log(np.float32(1) - first))
    angle = np.float32(2 * np.pi) * second
    both = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return both.reshape(-1)
