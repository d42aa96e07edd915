"""Samplers that remember earlier predictions: PNDM, DPM-Solver++ and UniPC.

Arguments as in singlestep. With lambda = -log(sigma), an exponential integrator's step in the Karras form is
x' = (sigma'/sigma) * x + (1 - sigma'/sigma) * (its estimate of x0 along the step).
"""

from __future__ import annotations

import math

import numpy as np

from .betas import Array
from .denoiser import Denoiser, OnStep, clean_latents, ignore
from .schedules import Schedule, same_latents
from .singlestep import land

ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
"""Weights of the newest prediction, the one before, ..., by the number of them."""


def pndm(denoise: Denoiser, x: Array, schedule: Schedule, on_step: OnStep = ignore) -> Array:
    """Pseudo linear multistep sampler (Liu et al. 2022, "Pseudo Numerical Methods for Diffusion Models").

    The first step is done twice, the second time with the mean of the predictions at its two ends, so of two
    steps or more the model is called once more than there are steps, and on_step with it.
    """
    sigmas = schedule.sigmas.tolist()
    start, history = x, [denoise.predict(x, 0)]
    x0 = clean_latents(x, history[0], sigmas[0], denoise.prediction)
    x = land(x, x0, schedule, 0)
    on_step(0, x, x0)
    if len(schedule) == 1:
        return x

    mean = (history[0] + denoise.predict(x, 1)) * np.float32(0.5)
    departure = schedule.departure(1)
    start = same_latents(start, sigmas[0], departure)
    x0 = clean_latents(start, mean, departure, denoise.prediction)
    x = x0 + (start - x0) * (sigmas[1] / departure)
    on_step(1, x, x0)

    for i in range(1, len(schedule)):
        history = [denoise.predict(x, i), *history[:3]]
        weights = ADAMS_BASHFORTH[len(history) - 1]
        output = np.einsum("k,k...->...", np.array(weights, np.float32), np.stack(history))
        x0 = clean_latents(x, output, sigmas[i], denoise.prediction)
        x = land(x, x0, schedule, i)
        on_step(i + 1, x, x0)
    return x


def dpmpp_2m(denoise: Denoiser, x: Array, schedule: Schedule, on_step: OnStep = ignore) -> Array:
    """DPM-Solver++(2M), data prediction, midpoint (Lu et al. 2022, arXiv 2211.01095, algorithm 2).

    First order where it starts, and where it ends at sigma 0.
    """
    sigmas = schedule.sigmas.tolist()
    history: list[Array] = []
    for i in range(len(schedule)):
        history = [denoise(x, i), *history[:1]]
        x = _step(x, _extrapolated(history, sigmas, i), sigmas[i], sigmas[i + 1])
        on_step(i, x, history[0])
    return x


def unipc(denoise: Denoiser, x: Array, schedule: Schedule, on_step: OnStep = ignore) -> Array:
    """UniPC of order 2 with B2(h), data prediction (Zhao et al. 2023, arXiv 2302.04867).

    The predictor is DPM-Solver++(2M); each new prediction first corrects the step that led to it.
    """
    sigmas = schedule.sigmas.tolist()
    history: list[Array] = []
    start = x
    for i in range(len(schedule)):
        x0 = denoise(x, i)
        if i > 0:
            x = _corrected(start, x0, history, sigmas, i)
        start, history = x, [x0, *history[:1]]
        x = _step(x, _extrapolated(history, sigmas, i), sigmas[i], sigmas[i + 1])
        on_step(i, x, x0)
    return x


def _step(x: Array, estimate: Array, sigma: float, sigma_next: float) -> Array:
    ratio = sigma_next / sigma
    return x * ratio + estimate * (1.0 - ratio)


def _extrapolated(history: list[Array], sigmas: list[float], i: int) -> Array:
    """x0 in the middle of step i, from its prediction at the start (history[0]) and the one before."""
    if len(history) == 1 or sigmas[i + 1] == 0.0:
        return history[0]
    step, last_step = math.log(sigmas[i] / sigmas[i + 1]), math.log(sigmas[i - 1] / sigmas[i])
    return history[0] + (history[0] - history[1]) * (step / (2.0 * last_step))


def _corrected(start: Array, x0: Array, history: list[Array], sigmas: list[float], i: int) -> Array:
    """The step from `start` at sigmas[i - 1] to sigmas[i], done again with the prediction x0 made there."""
    change = x0 - history[0]
    if len(history) == 1:
        return _step(start, history[0] + change * 0.5, sigmas[i - 1], sigmas[i])
    h = math.log(sigmas[i - 1] / sigmas[i])
    ratio = -math.log(sigmas[i - 2] / sigmas[i - 1]) / h
    phi_1 = math.expm1(-h)
    phi_2 = phi_1 / -h - 1.0
    phi_3 = phi_2 / -h - 0.5
    b_1, b_2 = phi_2 / phi_1, 2.0 * phi_3 / phi_1
    past = (b_1 - b_2) / (1.0 - ratio)
    slope = (history[1] - history[0]) / ratio
    return _step(start, history[0] + slope * past + change * (b_1 - past), sigmas[i - 1], sigmas[i])
