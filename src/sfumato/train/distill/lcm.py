"""Latent consistency distillation (Luo et al. 2023, arXiv 2310.04378 and, as a LoRA, 2311.05556)."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato.train.distill.lora import Sampling, as_teacher, inference
from sfumato.train.distill.source import Source
from sfumato.train.examples import Examples
from sfumato.train.loop import Task

SIGMA_DATA = 0.5
TIMESTEP_SCALING = 10.0
HUBER = 1e-3
# Timesteps that the student learns at. LCM has 50: with fewer, consistency comes up from the picture to the
# noise in fewer updates, and a guided teacher needs no more steps than this.
TAUGHT = 20


class LcmTask(Task):
    """A UNet's LoRA learns to say the same x0 all along a guided trajectory of the UNet without it.

    The student's x0 at a timestep is drawn to its own x0 one DDIM step of the teacher further down. The
    teacher's guidance is fixed and becomes the student's own: sample without any.
    """

    def __init__(self, source: Source, examples: Examples, guidance: float, few_steps: int) -> None:
        super().__init__()
        self.source, self.examples, self.guidance = source, examples, guidance
        changes = {"_class_name": "LCMScheduler", "original_inference_steps": TAUGHT}
        self.sampling = Sampling(changes, few_steps, guidance=1.0)
        self.denoiser = source.denoiser
        self.encoders = torch.nn.ModuleList(source.encoders())
        scheduler = self.sampling.scheduler_from(source.pipe.scheduler)
        self.prediction = scheduler.config.prediction_type
        self.stride = scheduler.config.num_train_timesteps // TAUGHT
        self.register_buffer("alphas_cumprod", scheduler.alphas_cumprod, persistent=False)
        self.register_buffer("taught", torch.arange(1, TAUGHT + 1) * self.stride - 1, persistent=False)

    def draw(self, size: int, rng: np.random.Generator, generator: torch.Generator) -> tuple[Any, ...]:
        """Latents, captions, noise, and which of the taught timesteps (int64 [size])."""
        latents, captions = self.examples.draw(size, rng)
        index = torch.randint(len(self.taught), (size,), generator=generator)
        return latents, captions, torch.randn(latents.shape, generator=generator), index

    def forward(
        self, latents: Tensor, captions: list[str], noise: Tensor, index: Tensor
    ) -> dict[str, Tensor]:
        """Pseudo-Huber distance between the student's x0 at both ends of the teacher's step.

        The first step of all begins with noise alone, as sampling does: SD's schedules leave some of the
        picture in it even there, from which the student would learn what it cannot know later.
        """
        start = self.taught[index]
        end = (start - self.stride).clamp_min(0)
        alpha, sigma = self.levels(start)
        unseen = (start == self.taught[-1])[:, None, None, None]
        x = torch.where(unseen, noise, alpha * latents + sigma * noise)
        with inference():
            side = latents.shape[-1] * self.source.pipe.vae_scale_factor
            condition = self.source.encode(captions, side, latents.device)
            moved = self.teacher_step(x, start, end, condition, side)
            target = self.consistent(moved, end, condition)
        error = self.consistent(x, start, condition) - target
        return {"loss": (error.square() + HUBER**2).sqrt().mean() - HUBER}

    def consistent(self, x: Tensor, timesteps: Tensor, condition: dict[str, Any]) -> Tensor:
        """The student's consistency function: x0 [batch, channels, height, width], x itself at timestep 0."""
        skip, out = boundary(timesteps)
        x0, _ = self.split(x, timesteps, self.predict(x, timesteps, condition))
        return skip * x + out * x0

    def teacher_step(
        self, x: Tensor, start: Tensor, end: Tensor, condition: dict[str, Any], side: int
    ) -> Tensor:
        """One guided DDIM step of the frozen model from timestep `start` down to `end`."""
        negative = self.source.encode_nothing(len(x), side, x.device)
        with as_teacher(self.denoiser):
            given = self.predict(x, start, condition)
            unconditional = self.predict(x, start, negative)
        guided = unconditional + self.guidance * (given - unconditional)
        x0, noise = self.split(x, start, guided)
        alpha, sigma = self.levels(end)
        return alpha * x0 + sigma * noise

    def predict(self, x: Tensor, timesteps: Tensor, condition: dict[str, Any]) -> Tensor:
        """The UNet's raw prediction in float32."""
        predicted: Tensor = self.denoiser(x, timesteps, **condition, return_dict=False)[0]
        return predicted.float()

    def split(self, x: Tensor, timesteps: Tensor, predicted: Tensor) -> tuple[Tensor, Tensor]:
        """x0 and noise from a prediction of epsilon or v."""
        alpha, sigma = self.levels(timesteps)
        if self.prediction == "v_prediction":
            return alpha * x - sigma * predicted, alpha * predicted + sigma * x
        return (x - sigma * predicted) / alpha, predicted

    def levels(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Shares of signal and noise, each [batch, 1, 1, 1]."""
        kept = self.alphas_cumprod[timesteps][:, None, None, None]
        return kept.sqrt(), (1 - kept).sqrt()


def boundary(timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """c_skip and c_out ([batch, 1, 1, 1]) as LCMScheduler has them: 1 and 0 at timestep 0."""
    scaled = timesteps[:, None, None, None] * TIMESTEP_SCALING
    square = scaled.square() + SIGMA_DATA**2
    return SIGMA_DATA**2 / square, scaled / square.sqrt()
