"""Gaussian noise equal to that of torch's CPU generator, so that a seed means the same picture in both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidRequest

Float32 = NDArray[np.float32]

BLOCK = 16
"""From this many values on, torch fills blocks of 16: eight cosines, then eight sines."""


class NoiseSource(Protocol):
    """Whatever hands out standard normal noise, call after call."""

    def randn(self, shape: Sequence[int]) -> Float32:
        """Return the next values of the stream, float32 of the given shape."""


class Generator:
    """The stream of `torch.Generator("cpu").manual_seed(seed)`, as `torch.randn` reads it for float32.

    Equal bit for bit to torch 2.13 on x86-64 with AVX2 and FMA (measured on forty million values), and the
    same bits on any machine. Without AVX2 torch itself takes log, sin and cos from the C library: 2.3e-6 away
    at most in four million values, from 16 values on; below that, no different.
    """

    def __init__(self, seed: int) -> None:
        """Start the stream. `seed` is any integer of 64 bits, signed or not; torch uses its low 32 bits.

        Raises InvalidRequest for a seed that torch's `manual_seed` would refuse.
        """
        if not -(2**63) <= seed < 2**64:
            raise InvalidRequest(f"seed {seed}: must fit in 64 bits (from -2**63 to 2**64 - 1)")
        self._bits = np.random.MT19937(0)
        self._bits.state = {
            "bit_generator": "MT19937",
            "state": {"key": _initial_key(seed & 0xFFFFFFFF), "pos": 624},
        }
        self._spare: float | None = None

    def randn(self, shape: Sequence[int]) -> Float32:
        """Return standard normal noise: what `torch.randn(shape, generator=...)` gives here in the stream."""
        size = math.prod(shape)
        values = self._blocks(size) if size >= BLOCK else self._singles(size)
        return values.reshape(tuple(shape))

    def _blocks(self, size: int) -> Float32:
        uniform = self._uniform(size)
        whole = size - size % BLOCK
        noise = np.empty(size, np.float32)
        noise[:whole] = _box_muller(uniform[:whole])
        if whole != size:  # torch draws the last sixteen anew rather than finish a partial block
            noise[-BLOCK:] = _box_muller(self._uniform(BLOCK))
        return noise

    def _uniform(self, size: int) -> Float32:
        """Float32 in [0, 1) from the low 24 bits of each 32-bit draw."""
        return (self._bits.random_raw(size) & 0xFFFFFF).astype(np.float32) * np.float32(2.0**-24)

    def _singles(self, size: int) -> Float32:
        return np.array([self._single() for _ in range(size)], np.float32)

    def _single(self) -> float:
        """One value of the scalar path: Box-Muller in float64, whose second value waits for the next call."""
        if self._spare is not None:
            value, self._spare = self._spare, None
            return value
        turn, depth = self._uniform53(), self._uniform53()
        radius = math.sqrt(-2.0 * math.log1p(-depth))
        self._spare = radius * math.sin(2.0 * math.pi * turn)
        return radius * math.cos(2.0 * math.pi * turn)

    def _uniform53(self) -> float:
        high, low = (int(word) for word in self._bits.random_raw(2))
        return ((high << 32 | low) & (2**53 - 1)) * 2.0**-53


def randn(seed: int, shape: Sequence[int]) -> Float32:
    """Return `torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))` as a float32 array."""
    return Generator(seed).randn(shape)


def _initial_key(seed: int) -> NDArray[np.uint32]:
    """The 624 words of MT19937 (Matsumoto and Nishimura 1998, initialisation of 2002)."""
    words = [seed]
    for i in range(1, 624):
        words.append((1812433253 * (words[-1] ^ words[-1] >> 30) + i) & 0xFFFFFFFF)
    return np.array(words, np.uint32)


def _box_muller(uniform: Float32) -> Float32:
    """Normal values from uniform ones, 16 at a time: radii from the first eight, angles from the rest."""
    blocks = uniform.reshape(-1, 2, BLOCK // 2)
    radius = np.sqrt(np.float32(-2.0) * _log(np.float32(1.0) - blocks[:, 0]))
    sine, cosine = _sincos(np.float32(2.0 * math.pi) * blocks[:, 1])
    noise = np.stack([radius * cosine, radius * sine], axis=1).reshape(-1)
    return noise + np.float32(0.0)  # times std plus mean in torch: no negative zero


def _fma(a: Float32, b: Float32 | np.float32, c: Float32 | np.float32) -> Float32:
    """a * b + c rounded once, as torch's compiled code has it (the product is exact in float64)."""
    return (a.astype(np.float64) * b + c).astype(np.float32)


def _polynomial(x: Float32, coefficients: Sequence[float]) -> Float32:
    """Horner's rule with one rounding a degree."""
    value = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = _fma(value, x, np.float32(coefficient))
    return value


# Cephes' single-precision logf, sinf and cosf (S. Moshier, netlib.org/cephes), highest degree first.
LOG_COEFFICIENTS = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)
LOG_2 = (0.693359375, -2.12194440e-4)
SIN_COEFFICIENTS = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
COS_COEFFICIENTS = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
QUARTER_PI = (0.78515625, 2.4187564849853515625e-4, 3.77489497744594108e-8)


def _log(x: Float32) -> Float32:
    """Natural logarithm of normal, positive float32 numbers."""
    mantissa, power = np.frexp(x)
    small = mantissa < np.float32(math.sqrt(0.5))
    exponent = (power - small).astype(np.float32)
    m = np.where(small, mantissa + mantissa, mantissa) - np.float32(1.0)
    square = m * m
    tail = _fma(_polynomial(m, LOG_COEFFICIENTS) * m, square, exponent * np.float32(LOG_2[1]))
    tail = _fma(square, np.float32(-0.5), tail)
    return _fma(exponent, np.float32(LOG_2[0]), m + tail)


def _sincos(x: Float32) -> tuple[Float32, Float32]:
    """Sine and cosine of float32 angles in [0, 2 pi]."""
    octant = (x * np.float32(4.0 / math.pi)).astype(np.int32)
    octant += octant & 1
    count = octant.astype(np.float32)
    for part in QUARTER_PI:
        x = _fma(count, np.float32(-part), x)
    square = x * x
    sine = _fma(_polynomial(square, SIN_COEFFICIENTS) * square, x, x)
    cosine = _fma(_polynomial(square, COS_COEFFICIENTS) * square, square, square * np.float32(-0.5))
    cosine += np.float32(1.0)
    swap = (octant & 2) != 0
    sine, cosine = np.where(swap, cosine, sine), np.where(swap, sine, cosine)
    return np.where(octant & 4, -sine, sine), np.where((octant + 2) & 4, -cosine, cosine)
