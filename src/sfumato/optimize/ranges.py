"""Eight-bit grids for activations and weights, chosen by the error that they leave in a layer's output."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..graphs.constants import Floats
from .observe import Statistics

Smooth = float | Literal["auto"] | None
STRENGTHS = (0.0, 0.5, 0.75)
OUTPUTS = 2048
"""Outputs of a layer, evenly spread, by which grids are compared."""
TINY = 1e-6
LEVELS = 256
"""Of an activation in 8 bits."""


@dataclass(frozen=True, eq=False)
class Grid:
    """How an activation is rounded to 8 bits: x / scales in 256 levels from low to high, zero among them.

    scales: [channels] float32, which the weights that read it are multiplied by (SmoothQuant, Xiao et al.
    2022, arXiv 2211.10438).
    """

    scales: Floats
    low: float
    high: float

    @property
    def step(self) -> float:
        return (self.high - self.low) / (LEVELS - 1)

    def rounded(self, x: Floats) -> Floats:
        """x / scales, rounded: [..., channels] float32."""
        clipped = np.clip(x / self.scales, self.low, self.high)
        return np.asarray(np.rint((clipped - self.low) / self.step) * self.step + self.low, np.float32)


def choose(seen: Statistics, weights: Sequence[Floats], smooth: Smooth) -> Grid:
    """The grid of an activation that layers with these weights ([outputs, taps, inputs]) read.

    smooth: the strength alpha of SmoothQuant; "auto" takes the one of STRENGTHS with the least error in the
    layers' outputs on the rows that were seen; None leaves the channels as they are.

    The range is all that was seen: drawing it in where that lessened the error on the rows made whole models
    worse by up to 4 dB, as outliers are rare in the rows and matter.
    """
    strengths = STRENGTHS if smooth == "auto" else (smooth or 0.0,)
    largest = np.max([np.abs(each).max((0, 1)) for each in weights], axis=0)
    grids = [_grid(seen, _scales(seen, largest, strength)) for strength in strengths]
    if len(grids) == 1:
        return grids[0]
    some = [each[:: -(-each.shape[0] * each.shape[1] // OUTPUTS)] for each in weights]
    errors = np.sum([_output_errors(grids, seen.rows, each) for each in some], axis=0)
    return grids[int(errors.argmin())]


def _output_errors(grids: Sequence[Grid], rows: Floats, weights: Floats) -> list[float]:
    """For each grid, the squared change of a layer's outputs that it and rounded weights make."""
    exact = rows @ weights.reshape(-1, weights.shape[2]).T
    errors = []
    for grid in grids:
        integers, steps = quantize_weights(weights * grid.scales)
        restored = (integers * steps).reshape(exact.shape[1], -1)
        errors.append(float(np.square(grid.rounded(rows) @ restored.T - exact).sum(dtype=np.float64)))
    return errors


def quantize_weights(weights: Floats) -> tuple[Floats, Floats]:
    """Whole numbers in -127..127 and their steps [outputs, 1, 1]: weights is about integers * steps."""
    steps = np.maximum(np.abs(weights).max(axis=(1, 2), keepdims=True) / 127, 1e-12).astype(np.float32)
    return np.rint(weights / steps).clip(-127, 127), steps


def _scales(seen: Statistics, largest: Floats, strength: float) -> Floats:
    """max|x|^alpha / max|w|^(1 - alpha) by channel, 1 in the geometric mean; 1 where nothing flows."""
    activation = np.maximum(np.abs(seen.low), np.abs(seen.high))
    alive = (activation > TINY) & (largest > TINY)
    if strength == 0.0 or not alive.any():
        return np.ones_like(activation)
    scales = np.ones_like(activation)
    scales[alive] = activation[alive] ** strength / largest[alive] ** (1 - strength)
    scales[alive] /= np.exp(np.log(scales[alive]).mean())
    return np.asarray(scales.clip(1e-3, 1e3), np.float32)


def _grid(seen: Statistics, scales: Floats) -> Grid:
    """The range of x / scales, moved so that zero is one of its levels."""
    low = min(float((seen.low / scales).min()), 0.0)
    high = max(float((seen.high / scales).max()), 0.0, low + TINY)
    step = (high - low) / (LEVELS - 1)
    zero = round(-low / step)
    return Grid(scales, -zero * step, (LEVELS - 1 - zero) * step)
