"""Distillation of a flow-matching MMDiT to one straight step for each segment of its trajectories.

Progressive distillation (Salimans & Ho 2022, arXiv 2202.00512) of a guided model (Meng et al. 2023, arXiv
2210.03142) in a single stage: to the last number of steps at once.
"""

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato.train.distill.flow import FlowTask
from sfumato.train.distill.lora import Sampling, as_teacher
from sfumato.train.distill.source import Source
from sfumato.train.examples import Examples

TEACHER_STEPS = 4


class SegmentsTask(FlowTask):
    """The student's Euler steps end where the guided flow would be: the picture is the teacher's.

    It is sampled by Euler's method, without guidance.
    """

    def __init__(self, source: Source, examples: Examples, guidance: float, few_steps: int) -> None:
        super().__init__(source, examples, guidance, Sampling({}, few_steps, guidance=0.0))

    def draw(self, size: int, rng: np.random.Generator, generator: torch.Generator) -> tuple[Any, ...]:
        """Captions, noise, and who goes without T5 (bool [size]); pictures are not needed."""
        latents, captions = self.examples.draw(size, rng)
        noise = torch.randn(latents.shape, generator=generator)
        return captions, noise, torch.rand(size, generator=generator) < 0.5

    def forward(self, captions: list[str], noise: Tensor, without_t5: Tensor) -> dict[str, Tensor]:
        """Squared distance of the student's velocities from those that lead to the next level.

        Segments count by their length.
        """
        condition, both = self.conditions(captions, without_t5, noise)
        levels = [*self.levels, torch.zeros_like(self.levels[0])]
        with as_teacher(self.denoiser):
            nodes = [level.expand(len(noise)) for level in levels]
            points = self.solve(noise, nodes, both, TEACHER_STEPS)
        wanted = [
            (after - before) / (end - start)
            for (before, after), (start, end) in zip(pairwise(points), pairwise(levels), strict=True)
        ]
        segments = len(wanted)
        repeated = {
            name: value.repeat(segments, *[1] * (value.ndim - 1)) for name, value in condition.items()
        }
        sigma = self.levels.repeat_interleave(len(noise))
        velocity = self.velocity(torch.cat(points[:-1]), sigma, repeated)
        errors = (velocity - torch.cat(wanted)).square().chunk(segments)
        parts = {f"segment_{i + 1}": error.mean() for i, error in enumerate(errors)}
        lengths = -torch.stack(levels).diff()
        return {"loss": (torch.stack(list(parts.values())) * lengths).sum() / lengths.sum(), **parts}
