"""Spacings: where the noise levels of the steps lie between the first and the last."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidRequest
from .betas import ZERO_SNR_ALPHA, Config, train_sigmas, value
from .values import did_you_mean

Doubles = NDArray[np.float64]

SPACINGS = ("karras", "exponential", "beta", "ays")
CONFIGURED = {
    "use_karras_sigmas": "karras",
    "use_exponential_sigmas": "exponential",
    "use_beta_sigmas": "beta",
}
"""What a scheduler_config says to ask for a spacing."""

AYS_TIMESTEPS = {
    "sd": (999, 850, 736, 645, 545, 455, 343, 233, 124, 24, 0),
    "sdxl": (999, 845, 730, 587, 443, 310, 193, 116, 53, 13, 0),
}
"""Align Your Steps (Sabour et al. 2024, arXiv 2404.14507) by family: ten steps, as published."""
AYS_NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
"""The training noise that those timesteps are of."""
BETA_SHAPE = 0.6
"""Both parameters of the distribution (Lee et al. 2024, arXiv 2407.12173), as diffusers has them."""


@dataclass(frozen=True)
class Spacing:
    """A way to place noise levels.

    sigmas: (largest, least, steps) -> so many sigmas, falling; the 0 they end in is not among them.
    whole: what diffusers' multistep solvers, whose timesteps are whole, make of fractional timesteps.
    """

    sigmas: Callable[[float, float, int], Doubles]
    whole: Callable[[Doubles], Doubles] = np.trunc


def find_spacing(name: str, family: str | None = None) -> Spacing:
    """Return the spacing called `name`; "ays" is another one for each family (its name).

    Raises InvalidRequest for an unknown name, and for a family that "ays" is not published for.
    """
    if name not in SPACINGS:
        hint = did_you_mean(str(name), SPACINGS)
        raise InvalidRequest(f"spacing {name!r}: no such spacing; {hint}choose one of {', '.join(SPACINGS)}")
    if name == "ays" and family not in AYS_TIMESTEPS:
        published = " and ".join(AYS_TIMESTEPS)
        raise InvalidRequest(
            f"spacing 'ays': its noise levels are published for the families {published}, not for {family}; "
            f"choose one of {', '.join(SPACINGS[:-1])}"
        )
    spacings = {
        "karras": Spacing(karras_sigmas, np.round),
        "exponential": Spacing(exponential_sigmas),
        "beta": Spacing(beta_sigmas),
        "ays": Spacing(partial(ays_sigmas, AYS_TIMESTEPS.get(family or "", ())), np.positive),
    }
    return spacings[name]


def configured_spacing(config: Config) -> str | None:
    """Return the spacing that a scheduler_config asks for; raises InvalidRequest if it asks for several."""
    asked = [key for key in CONFIGURED if value(config, key, False)]
    if len(asked) > 1:
        raise InvalidRequest(f"scheduler_config {' and '.join(asked)}: only one of them can be true")
    return CONFIGURED[asked[0]] if asked else None


def karras_sigmas(largest: float, least: float, steps: int, rho: float = 7.0) -> Doubles:
    """Return `steps` sigmas evenly spaced in sigma**(1/rho) (Karras et al. 2022, equation 5)."""
    high, low = largest ** (1.0 / rho), least ** (1.0 / rho)
    sigmas: Doubles = (high + np.linspace(0.0, 1.0, steps) * (low - high)) ** rho
    return sigmas


def exponential_sigmas(largest: float, least: float, steps: int) -> Doubles:
    """Return `steps` sigmas evenly spaced in log sigma."""
    sigmas: Doubles = np.exp(np.linspace(math.log(largest), math.log(least), steps))
    return sigmas


def beta_sigmas(largest: float, least: float, steps: int) -> Doubles:
    """Return `steps` sigmas at evenly spaced quantiles of a beta distribution: dense at both ends."""
    return least + beta_quantiles(1.0 - np.linspace(0.0, 1.0, steps), BETA_SHAPE) * (largest - least)


def ays_sigmas(timesteps: tuple[int, ...], largest: float, least: float, steps: int) -> Doubles:
    """Return `steps` sigmas, log-linear between those of the published timesteps, as its authors do.

    They stand for themselves, whatever the configuration's ends are; so a model whose noise goes much
    further up (zero terminal SNR) cannot use them: raises InvalidRequest.
    """
    levels = train_sigmas(AYS_NOISE, ZERO_SNR_ALPHA)[list(timesteps)].astype(np.float64)
    if largest > 2.0 * levels[0]:
        raise InvalidRequest(
            f"spacing 'ays': begins at sigma {levels[0]:.1f}, but the noise of this model at {largest:.1f}; "
            f"choose one of {', '.join(SPACINGS[:-1])}"
        )
    places = np.linspace(0.0, len(levels) - 1.0, steps + 1)
    sigmas: Doubles = np.exp(np.interp(places, np.arange(len(levels)), np.log(levels)))[:-1]
    return sigmas


def beta_quantiles(chances: Doubles, shape: float) -> Doubles:
    """Return the inverse cumulative distribution of the symmetric beta distribution, within 1e-9.

    chances: from 0 to 1. shape: both parameters, 0 < shape <= 1. With y = x**shape the density has no
    singularity at 0 and the distribution is nearly a line, where Newton's method is at home; the other half
    is a mirror image.
    """
    nodes, weights = np.polynomial.legendre.leggauss(32)
    scale = 1.0 / (shape * math.gamma(shape) ** 2 / math.gamma(2.0 * shape))
    nearer = np.minimum(chances, 1.0 - chances)
    y = nearer / scale
    for _ in range(5):
        between = np.outer(y, (nodes + 1.0) / 2.0)
        area = scale * y / 2.0 * ((1.0 - between ** (1.0 / shape)) ** (shape - 1.0) @ weights)
        density = scale * (1.0 - y ** (1.0 / shape)) ** (shape - 1.0)
        y = y - (area - nearer) / density
    x = y ** (1.0 / shape)
    return np.where(chances > 0.5, 1.0 - x, x)
