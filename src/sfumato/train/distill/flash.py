"""Distillation of a flow-matching MMDiT after Flash Diffusion (Chadebec et al. 2024, arXiv 2406.02347)."""

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato.runtime.schedules import flow_schedule
from sfumato.train.distill.lora import Sampling, without_lora
from sfumato.train.distill.source import Examples, Source
from sfumato.train.loop import Task

# With two-step Adams-Bashforth, as close to the solution as twice as many steps of Euler's method (measured).
TEACHER_STEPS = 12


class FlashTask(Task):
    """An MMDiT's LoRA learns, at the few noise levels where it is used, where the guided model would end.

    The teacher's guidance becomes the student's own: sample without any.
    """

    def __init__(self, source: Source, examples: Examples, guidance: float, few_steps: int) -> None:
        super().__init__()
        self.source, self.examples, self.guidance = source, examples, guidance
        self.sampling = Sampling({"stochastic_sampling": True}, few_steps, guidance=0.0)
        self.denoiser = source.denoiser
        self.encoders = torch.nn.ModuleList(source.encoders())
        config = dict(source.pipe.scheduler.config)
        self.train_timesteps = config["num_train_timesteps"]
        self.shift = config["shift"]
        levels = torch.from_numpy(flow_schedule(config, few_steps).sigmas[:-1].copy())
        self.register_buffer("levels", levels, persistent=False)

    def draw(self, size: int, rng: np.random.Generator, generator: torch.Generator) -> tuple[Any, ...]:
        """Latents, captions, noise, noise levels (float32 [size]), and who goes without T5 (bool [size])."""
        latents, captions = self.examples.draw(size, rng)
        # At the lowest level of diffusers' schedules (0.004 and less) there is nothing left to learn.
        sigma = self.levels.cpu()[torch.multinomial(self.levels.cpu(), size, True, generator=generator)]
        noise = torch.randn(latents.shape, generator=generator)
        return latents, captions, noise, sigma, torch.rand(size, generator=generator) < 0.5

    def forward(
        self, latents: Tensor, captions: list[str], noise: Tensor, sigma: Tensor, without_t5: Tensor
    ) -> dict[str, Tensor]:
        """Squared distance of the student's x0 from the end of the teacher's trajectory."""
        condition, both = self.conditions(captions, without_t5, latents)
        level = sigma[:, None, None, None]
        x = torch.lerp(latents, noise, level)
        with torch.no_grad(), without_lora(self.denoiser):
            target = self.solve(x, sigma, both)
        x0 = x - level * self.velocity(x, sigma, condition)
        return {"loss": (x0 - target).square().mean()}

    def velocity(self, x: Tensor, sigma: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """The MMDiT's prediction, noise - x0, in float32."""
        timesteps = sigma * self.train_timesteps
        predicted: Tensor = self.denoiser(x, timestep=timesteps, **condition, return_dict=False)[0]
        return predicted.float()

    def guided(self, x: Tensor, sigma: Tensor, both: dict[str, Tensor]) -> Tensor:
        """The velocity with guidance; `both` are the prompts' inputs, then those of as many empty ones."""
        given, empty = self.velocity(x.repeat(2, 1, 1, 1), sigma.repeat(2), both).chunk(2)
        return empty + self.guidance * (given - empty)

    def solve(self, x: Tensor, sigma: Tensor, both: dict[str, Tensor]) -> Tensor:
        """Where the guided flow from x at `sigma` ends (Adams-Bashforth, steps spaced as in diffusers)."""
        progress = self.unshifted(sigma)
        levels = [self.shifted(progress * (1 - i / TEACHER_STEPS)) for i in range(TEACHER_STEPS + 1)]
        before: tuple[Tensor, Tensor] | None = None
        for level, following in pairwise(levels):
            velocity = slope = self.guided(x, level, both)
            step = (following - level)[:, None, None, None]
            if before is not None:
                last, last_step = before
                slope = velocity + (velocity - last) * step / last_step / 2
            x = x + step * slope
            before = velocity, step
        return x

    def shifted(self, level: Tensor) -> Tensor:
        """The noise level at an evenly spaced one; diffusers applies the shift twice."""
        shift = self.shift**2
        return shift * level / (1 + (shift - 1) * level)

    def unshifted(self, level: Tensor) -> Tensor:
        """Inverse of `shifted`."""
        shift = self.shift**2
        return level / (shift - (shift - 1) * level)

    @torch.no_grad()
    def conditions(
        self, captions: list[str], without_t5: Tensor, latents: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Inputs for the captions, and these followed by those for as many empty captions."""
        side = latents.shape[-1] * self.source.pipe.vae_scale_factor
        both = self.source.encode([*captions, *[""] * len(captions)], side, latents.device)
        t5 = both["encoder_hidden_states"][:, -self.source.t5_tokens :]
        t5.masked_fill_(without_t5.repeat(2)[:, None, None], 0)
        return {name: value[: len(captions)] for name, value in both.items()}, both
