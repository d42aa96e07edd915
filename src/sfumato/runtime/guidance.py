"""Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598) around a denoiser."""

from collections.abc import Mapping, Sequence

import numpy as np

from ..families import Array, Family
from .networks import Network


class GuidedModel:
    """The denoiser with its conditioning: (model input, timestep) -> noise or velocity.

    conditioning: the prompt's, then the negative prompt's where there is one; those two run as one batch,
        negative first.
    """

    def __init__(
        self,
        network: Network,
        family: Family,
        conditioning: Sequence[Mapping[str, Array]],
        guidance: float,
    ) -> None:
        parts = conditioning[::-1]
        self._conditioning = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        self._network = network
        self._latents_input = family.latents_input
        self._batch = len(conditioning)
        self._guidance = np.float32(guidance)

    def load(self, latents: tuple[int, ...]) -> None:
        """Compile the network for latents of this shape, [1, channels, height, width]."""
        shapes = {name: array.shape for name, array in self._conditioning.items()}
        shapes[self._latents_input] = (self._batch, *latents[1:])
        shapes["timestep"] = (self._batch,)
        self._network.load(shapes, {"out_sample": (self._batch, *latents[1:])})

    def __call__(self, x: Array, timestep: float) -> Array:
        """Predict for scaled latents x, [1, channels, height, width]; the result has the same shape."""
        latents = np.repeat(x, self._batch, axis=0)
        timesteps = np.full(self._batch, timestep, np.float32)
        inputs = {**self._conditioning, self._latents_input: latents, "timestep": timesteps}
        output = self._network(inputs, {"out_sample": latents.shape})["out_sample"]
        if self._batch == 1:
            return output
        negative, positive = np.split(output, 2)
        return negative + self._guidance * (positive - negative)
