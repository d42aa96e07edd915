"""The noise that a variance-preserving model was trained with, from its scheduler_config.

Rounded to float32 where diffusers rounds: 1 - alpha at the first timesteps keeps only three to five digits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidRequest

Array = NDArray[np.float32]
Config = Mapping[str, Any]

ZERO_SNR_ALPHA = 2.0**-24
"""Stands for an alpha of 0, whose sigma would be infinite, where diffusers does so (Euler, DPM++, UniPC)."""
TINY_ALPHA = 1e-10
"""Stands for it where diffusers keeps the 0 (DDIM, LCM): 1e-5 of the picture."""


def value(config: Config, key: str, default: Any) -> Any:
    """Return config[key], or the default where it is absent or null."""
    given = config.get(key)
    return default if given is None else given


def number(config: Config, key: str, default: float, least: float, most: float) -> float:
    """Return config[key] as value() does; raises InvalidRequest unless it is a number from least to most."""
    given = value(config, key, default)
    if isinstance(given, bool) or not isinstance(given, int | float) or not least <= given <= most:
        raise InvalidRequest(f"scheduler_config {key} {given!r}: must be a number from {least:g} to {most:g}")
    return float(given)


def train_timesteps(config: Config) -> int:
    """Return how many timesteps the model was trained with."""
    return int(number(config, "num_train_timesteps", 1000, least=2, most=100_000))


def train_sigmas(config: Config, zero_snr_alpha: float) -> Array:
    """Return sigma of the Karras form at every training timestep, [T] float32; see train_alphas."""
    alphas = train_alphas(config, zero_snr_alpha)
    sigmas: Array = np.sqrt((np.float32(1.0) - alphas) / alphas)
    return sigmas


def train_alphas(config: Config, zero_snr_alpha: float) -> Array:
    """Return the products of alphas at every training timestep, [T] float32.

    zero_snr_alpha: stands in for the 0 at the last timestep under rescale_betas_zero_snr.
    Raises InvalidRequest for an unknown beta_schedule.
    """
    alphas = np.float32(1.0) - _betas(config)
    products = np.cumprod(alphas, dtype=np.float64).astype(np.float32)
    if value(config, "rescale_betas_zero_snr", False):
        products = _zero_terminal_snr(products)
        products[-1] = zero_snr_alpha
    return products


def _betas(config: Config) -> Array:
    if (given := config.get("trained_betas")) is not None:
        return _trained_betas(given)
    train = train_timesteps(config)
    start = number(config, "beta_start", 0.0001, least=0.0, most=1.0)
    end = number(config, "beta_end", 0.02, least=0.0, most=1.0)
    match value(config, "beta_schedule", "linear"):
        case "linear":
            return _linspace(start, end, train)
        case "scaled_linear":
            return np.square(_linspace(math.sqrt(start), math.sqrt(end), train))
        case "squaredcos_cap_v2":
            bars = np.cos((np.arange(train + 1) / train + 0.008) / 1.008 * math.pi / 2.0) ** 2
            betas = np.minimum(1.0 - bars[1:] / bars[:-1], 0.999)
            return np.asarray(betas, np.float32)
        case unknown:
            raise InvalidRequest(
                f"beta_schedule {unknown!r}: must be one of linear, scaled_linear, squaredcos_cap_v2"
            )


def _trained_betas(given: Any) -> Array:
    numbers = isinstance(given, list | tuple) and all(isinstance(beta, int | float) for beta in given)
    if not numbers or len(given) < 2 or not all(0.0 < beta < 1.0 for beta in given):
        raise InvalidRequest("scheduler_config trained_betas: must be a list of numbers between 0 and 1")
    return np.asarray(given, np.float32)


def _linspace(start: float, end: float, count: int) -> Array:
    """torch.linspace in float32: counted from the nearer end, one rounding a value."""
    first, last = np.float32(start), np.float32(end)
    step = np.float64((last - first) / np.float32(count - 1))
    up = np.arange(count)
    return np.where(up < count // 2, first + step * up, last - step * up[::-1]).astype(np.float32)


def _zero_terminal_snr(products: Array) -> Array:
    """Shift and scale so that the last timestep is pure noise (Lin et al. 2024, algorithm 1)."""
    roots = np.sqrt(products)
    roots = (roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))
    bars = roots**2
    alphas = np.concatenate([bars[:1], bars[1:] / bars[:-1]])
    return np.cumprod(np.float32(1.0) - (np.float32(1.0) - alphas), dtype=np.float64).astype(np.float32)
