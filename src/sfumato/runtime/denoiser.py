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


@dataclass(frozen=True, eq=False)
class Denoiser:
    """A model on a schedule: `denoise(x, i)` gives the clean latents implied at x, the start of step i."""

    model: Model
    schedule: Schedule
    prediction: Prediction

    def __call__(self, x: Array, i: int) -> Array:
        """Return x0 at x, which is at sigmas[i]; both float32."""
        return clean_latents(x, self.predict(x, i), float(self.schedule.sigmas[i]), self.prediction)

    def predict(self, x: Array, i: int) -> Array:
        """Return the model's raw prediction at x, which is at sigmas[i], as float32."""
        scaled = model_input(x, float(self.schedule.sigmas[i]), self.schedule.space)
        return np.asarray(self.model(scaled, float(self.schedule.timesteps[i])), np.float32)
