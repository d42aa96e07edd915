"""What samplers call: a model's raw prediction turned into the clean latents that it implies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .betas import Array
from .schedules import Schedule, Space, vp_scale

Prediction = Literal["epsilon", "v_prediction", "flow"]
Model = Callable[[Array, float], Array]
"""(model input, timestep of float32) -> raw prediction; arrays [batch, channels, height, width] float32."""
OnStep = Callable[[int, Array, Array], None]
"""(index of the model call, x after it, the clean latents it implied); what it raises ends the sampling."""


def ignore(index: int, x: Array, x0: Array) -> None:
    """Do nothing between steps."""


def model_input(x: Array, sigma: float, space: Space) -> Array:
    """Return x as the model was trained to see it."""
    return x * vp_scale(sigma) if space == "vp" else x


def clean_latents(x: Array, output: Array, sigma: float, prediction: Prediction) -> Array:
    """Return x0 from a raw prediction at x.

    epsilon and flow: x0 = x - sigma * output, the noise or the velocity noise - x0.
    v_prediction (Salimans and Ho 2022): x0 = x / (sigma**2 + 1) - output * sigma / sqrt(sigma**2 + 1).
    """
    if prediction == "v_prediction":
        scale = vp_scale(sigma)
        return x * scale**2 - output * (sigma * scale)
    return x - output * sigma


def raw_prediction(x: Array, x0: Array, sigma: float, prediction: Prediction) -> Array:
    """Return the raw prediction at x that implies x0: the inverse of clean_latents."""
    if prediction == "v_prediction":
        scale = vp_scale(sigma)
        return (x * scale**2 - x0) / np.float32(sigma * scale)
    return (x - x0) / np.float32(sigma)


@dataclass(frozen=True, eq=False)
class Known:
    """What is given of the clean latents: all that is not repainted.

    Where x0 is known, a sampler that starts from it with noise stays on the straight way between the two. So
    this is latent blending (Avrahami et al. 2022, Blended Latent Diffusion) without a look at the sampler.
    latents: [1, channels, height, width]. mask: [1, 1, height, width], 1 where repainted; both float32.
    """

    latents: Array
    mask: Array

    def blend(self, x0: Array) -> Array:
        """Return x0 with the known latents where nothing is repainted."""
        return np.where(self.mask > 0, x0, self.latents)


@dataclass(frozen=True, eq=False)
class Denoiser:
    """A model on a schedule: `denoise(x, i)` gives the clean latents implied at x, the start of step i."""

    model: Model
    schedule: Schedule
    prediction: Prediction
    known: Known | None = None

    def __call__(self, x: Array, i: int) -> Array:
        """Return x0 at x, which is at sigmas[i]; both float32."""
        x0 = clean_latents(x, self._raw(x, i), float(self.schedule.sigmas[i]), self.prediction)
        return x0 if self.known is None else self.known.blend(x0)

    def predict(self, x: Array, i: int) -> Array:
        """Return the raw prediction at x, which is at sigmas[i], as float32."""
        if self.known is None:
            return self._raw(x, i)
        return raw_prediction(x, self(x, i), float(self.schedule.sigmas[i]), self.prediction)

    def _raw(self, x: Array, i: int) -> Array:
        scaled = model_input(x, float(self.schedule.sigmas[i]), self.schedule.space)
        return np.asarray(self.model(scaled, float(self.schedule.timesteps[i])), np.float32)
