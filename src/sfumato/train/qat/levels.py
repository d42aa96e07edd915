"""Noise for training: how much, and what the denoiser is to say of it, by what it predicts."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor


class Noising(ABC):
    """Noised latents and targets; levels are drawn as the published trainings draw them."""

    def __init__(self, scheduler: Any) -> None:
        self.config = dict(scheduler.config)
        self.steps = int(self.config.get("num_train_timesteps", 1000))

    @abstractmethod
    def timesteps(self, count: int, generator: torch.Generator) -> Tensor:
        """[count], as the denoiser takes them."""

    @abstractmethod
    def spread(self, count: int) -> Tensor:
        """[count] timesteps evenly over all that are trained."""

    @abstractmethod
    def weight(self, timesteps: Tensor) -> Tensor:
        """[count], how much an error of the prediction weighs in the way of a sample, about 1 in the mean."""

    @abstractmethod
    def mix(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Noised latents and the target, both [batch, channels, height, width]."""


class Diffusion(Noising):
    """Variance-preserving noise; predicts the noise (Ho et al. 2020) or v (Salimans and Ho 2022)."""

    def __init__(self, scheduler: Any) -> None:
        super().__init__(scheduler)
        self.alphas_cumprod = scheduler.alphas_cumprod.float()
        self.v_prediction = self.config.get("prediction_type") == "v_prediction"

    def timesteps(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.randint(self.steps, (count,), generator=generator)

    def spread(self, count: int) -> Tensor:
        return ((torch.arange(count) + 0.5) * self.steps / count).long()

    def weight(self, timesteps: Tensor) -> Tensor:
        """Of errors in v: for epsilon, an error weighs 1 + sigma^2.

        An epsilon that is a little wrong where all is noise changes what the picture shows; where little
        noise is left, where nearly all of the plain distance comes from, it changes next to nothing.
        """
        if self.v_prediction:
            return torch.ones_like(timesteps, dtype=torch.float32)
        weights = 1 / self.alphas_cumprod.to(timesteps.device)
        return weights[timesteps] / weights.mean()

    def mix(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        kept = self.alphas_cumprod.to(latents.device)[timesteps][:, None, None, None]
        signal, sigma = kept.sqrt(), (1 - kept).sqrt()
        target = signal * noise - sigma * latents if self.v_prediction else noise
        return signal * latents + sigma * noise, target


class Flow(Noising):
    """Rectified flow; logit-normal levels, shifted (Esser et al. 2024, arXiv 2403.03206)."""

    def timesteps(self, count: int, generator: torch.Generator) -> Tensor:
        return self._shifted(torch.sigmoid(torch.randn(count, generator=generator)))

    def spread(self, count: int) -> Tensor:
        return self._shifted((torch.arange(count) + 0.5) / count)

    def weight(self, timesteps: Tensor) -> Tensor:
        return torch.ones_like(timesteps, dtype=torch.float32)

    def mix(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        sigma = (timesteps / self.steps)[:, None, None, None]
        return (1 - sigma) * latents + sigma * noise, noise - latents

    def _shifted(self, sigma: Tensor) -> Tensor:
        shift = float(self.config.get("shift", 1.0))
        return shift * sigma / (1 + (shift - 1) * sigma) * self.steps


NOISING: dict[str, type[Noising]] = {"epsilon": Diffusion, "v_prediction": Diffusion, "flow": Flow}
"""By the manifest's name for what a model predicts."""
