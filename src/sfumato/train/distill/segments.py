"""Distillation to one straight step for each segment of the guided model's trajectory.

Progressive distillation (Salimans & Ho 2022, arXiv 2202.00512) of a guided model (Meng et al. 2023, arXiv
2210.03142) in a single stage: to the last number of steps at once.
"""

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato.convert.lora import TRAILING_EULER
from sfumato.train.distill.lora import Sampling, as_teacher
from sfumato.train.distill.source import Source
from sfumato.train.distill.trajectory import changed, trajectory_of
from sfumato.train.examples import Examples
from sfumato.train.loop import Task

TEACHER_STEPS = 4


class SegmentsTask(Task):
    """The student's Euler steps end where the guided trajectory would be: the picture is the teacher's.

    It is sampled by Euler's method, without guidance.
    """

    def __init__(self, source: Source, examples: Examples, guidance: float, few_steps: int) -> None:
        super().__init__()
        self.examples = examples
        flow = source.prediction == "flow"
        self.sampling = Sampling({}, few_steps, 0.0) if flow else Sampling(TRAILING_EULER, few_steps, 1.0)
        self.trajectory = trajectory_of(source, guidance, self.sampling)

    def draw(self, size: int, rng: np.random.Generator, generator: torch.Generator) -> tuple[Any, ...]:
        """Captions, noise, and who goes without T5 (bool [size]); pictures are not needed."""
        latents, captions = self.examples.draw(size, rng)
        noise = torch.randn(latents.shape, generator=generator)
        return captions, noise, torch.rand(size, generator=generator) < 0.5

    def forward(self, captions: list[str], noise: Tensor, without_t5: Tensor) -> dict[str, Tensor]:
        """Squared distance of the student's slopes from those that lead to the next level, weighted."""
        path = self.trajectory
        condition, both = path.conditions(captions, without_t5, noise)
        nodes = path.nodes()
        levels = path.level(nodes)
        with as_teacher(path.denoiser):
            starts = [node.expand(len(noise)) for node in nodes]
            points = path.solve(levels[0] * noise, starts, both, TEACHER_STEPS)
        wanted = [
            (after - before) / (end - start)
            for (before, after), (start, end) in zip(pairwise(points), pairwise(levels), strict=True)
        ]
        segments = len(wanted)
        repeated = changed(condition, lambda value: value.repeat(segments, *[1] * (value.ndim - 1)))
        positions = path.positions.repeat_interleave(len(noise))
        slope = path.slope(torch.cat(points[:-1]), positions, repeated)
        errors = (slope - torch.cat(wanted)).square().chunk(segments)
        parts = {f"segment_{i + 1}": error.mean() for i, error in enumerate(errors)}
        return {"loss": (torch.stack(list(parts.values())) * path.weights()).sum(), **parts}
