"""Samplers that need no more than the current prediction: Euler, ancestral, DDIM, LCM, flow with re-noising.

All take (denoise, x, schedule[, noise], on_step) and return x at the last sigma. x: latents at
schedule.sigmas[0], [batch, channels, height, width] float32. Noise is drawn where a step adds some, the last
adds none. An exception raised by on_step ends the sampling.
"""

from __future__ import annotations

import math
from itertools import pairwise

from .betas import Array
from .denoiser import Denoiser, OnStep, ignore
from .noise import NoiseSource
from .schedules import Schedule, same_latents, vp_scale

LCM_SIGMA_DATA = 0.5
LCM_TIMESTEP_SCALING = 10.0


def euler(denoise: Denoiser, x: Array, schedule: Schedule, on_step: OnStep = ignore) -> Array:
    """First-order sampler (Karras et al. 2022, algorithm 2 without churn); on flows, the same line."""
    sigmas = schedule.sigmas.tolist()
    for i in range(len(schedule)):
        x0 = denoise(x, i)
        derivative = (x - x0) / sigmas[i]
        x = x + derivative * (sigmas[i + 1] - sigmas[i])
        on_step(i, x, x0)
    return x


def euler_ancestral(
    denoise: Denoiser,
    x: Array,
    schedule: Schedule,
    noise: NoiseSource,
    on_step: OnStep = ignore,
    eta: float = 1.0,
) -> Array:
    """Euler to below the next sigma, then fresh noise up to it (Song et al. 2021, DDIM with eta 1).

    eta: scales the fresh noise, as in k-diffusion; 0 is Euler.
    """
    sigmas = schedule.sigmas.tolist()
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, i)
        down = _below(sigma, following, eta)
        x = x + (x - x0) / sigma * (down - sigma)
        x = _with_noise(x, down, following, noise)
        on_step(i, x, x0)
    return x


def ddim(
    denoise: Denoiser,
    x: Array,
    schedule: Schedule,
    noise: NoiseSource,
    on_step: OnStep = ignore,
    eta: float = 0.0,
) -> Array:
    """DDIM (Song et al. 2021, formulas 12 and 16): Euler in the Karras form, on DDIM's schedule.

    eta: share of the noise of DDPM that is drawn anew; at 0 nothing is drawn.
    """
    for i in range(len(schedule)):
        x0 = denoise(x, i)
        x = land(x, x0, schedule, i) if eta == 0.0 else _land_noised(x, x0, schedule, i, noise, eta)
        on_step(i, x, x0)
    return x


def lcm(
    denoise: Denoiser, x: Array, schedule: Schedule, noise: NoiseSource, on_step: OnStep = ignore
) -> Array:
    """Latent consistency sampler (Luo et al. 2023, arXiv 2310.04378): clean latents, then fresh noise."""
    sigmas = schedule.sigmas.tolist()
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        scaled = float(schedule.timesteps[i]) * LCM_TIMESTEP_SCALING
        skip = LCM_SIGMA_DATA**2 / (scaled**2 + LCM_SIGMA_DATA**2)
        out = scaled / math.hypot(scaled, LCM_SIGMA_DATA)
        x0 = denoise(x, i) * out + x * (skip * vp_scale(sigma))
        x = x0 + noise.randn(x.shape) * following if following > 0.0 else x0
        on_step(i, x, x0)
    return x


def flow_renoise(
    denoise: Denoiser, x: Array, schedule: Schedule, noise: NoiseSource, on_step: OnStep = ignore
) -> Array:
    """Few-step flow sampler of Flash Diffusion (Chadebec et al. 2024, arXiv 2406.02347).

    x' = (1 - sigma') * x0 + sigma' * fresh noise.
    """
    for i, following in enumerate(schedule.sigmas[1:].tolist()):
        x0 = denoise(x, i)
        x = x0 * (1.0 - following) + noise.randn(x.shape) * following if following > 0.0 else x0
        on_step(i, x, x0)
    return x


def land(x: Array, x0: Array, schedule: Schedule, i: int) -> Array:
    """Return x moved along the line from x0 to where step i ends, as x at sigmas[i + 1]."""
    landing = schedule.landing(i)
    moved = x0 + (x - x0) * (landing / float(schedule.sigmas[i]))
    return same_latents(moved, landing, float(schedule.sigmas[i + 1]))


def _land_noised(x: Array, x0: Array, schedule: Schedule, i: int, noise: NoiseSource, eta: float) -> Array:
    """`land`, with a share of fresh noise."""
    sigma, landing = float(schedule.sigmas[i]), schedule.landing(i)
    down = _below(sigma, landing, eta)
    moved = _with_noise(x0 + (x - x0) * (down / sigma), down, landing, noise)
    return same_latents(moved, landing, float(schedule.sigmas[i + 1]))


def _below(sigma: float, following: float, eta: float) -> float:
    """The sigma from which noise of eta times the posterior's deviation leads up to `following`."""
    return following * math.sqrt(1.0 - eta**2 + (eta * following / sigma) ** 2)


def _with_noise(x: Array, sigma: float, following: float, noise: NoiseSource) -> Array:
    """Return x taken from sigma up to `following`; nothing is drawn where the two are the same."""
    if sigma == following:
        return x
    return x + noise.randn(x.shape) * math.sqrt(following**2 - sigma**2)
