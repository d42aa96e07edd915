"""Distillation of a flow-matching MMDiT after Flash Diffusion (Chadebec et al. 2024, arXiv 2406.02347)."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato.train.distill.lora import Sampling, as_teacher
from sfumato.train.distill.source import Source
from sfumato.train.distill.trajectory import FlowTrajectory
from sfumato.train.examples import Examples
from sfumato.train.loop import Task

TEACHER_STEPS = 12


class FlashTask(Task):
    """The student learns, at the few noise levels where it is used, where the guided flow would end.

    It is sampled without guidance, with fresh noise at every level.
    """

    def __init__(self, source: Source, examples: Examples, guidance: float, few_steps: int) -> None:
        super().__init__()
        self.examples = examples
        self.sampling = Sampling({"stochastic_sampling": True}, few_steps, guidance=0.0)
        self.trajectory = FlowTrajectory(source, guidance, self.sampling)

    def draw(self, size: int, rng: np.random.Generator, generator: torch.Generator) -> tuple[Any, ...]:
        """Latents, captions, noise, positions (float32 [size]), and who goes without T5 (bool [size])."""
        latents, captions = self.examples.draw(size, rng)
        positions = self.trajectory.positions.cpu()
        drawn = positions[torch.randint(len(positions), (size,), generator=generator)]
        noise = torch.randn(latents.shape, generator=generator)
        return latents, captions, noise, drawn, torch.rand(size, generator=generator) < 0.5

    def forward(
        self, latents: Tensor, captions: list[str], noise: Tensor, position: Tensor, without_t5: Tensor
    ) -> dict[str, Tensor]:
        """Squared distance of the student's x0 from the end of the teacher's trajectory."""
        path = self.trajectory
        condition, both = path.conditions(captions, without_t5, latents)
        level = path.level(position)[:, None, None, None]
        x = torch.lerp(latents, noise, level)
        with as_teacher(path.denoiser):
            _, target = path.solve(x, [position, torch.zeros_like(position)], both, TEACHER_STEPS)
        x0 = x - level * path.slope(x, position, condition)
        return {"loss": (x0 - target).square().mean()}
