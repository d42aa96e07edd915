"""A guided model's trajectory from noise to picture and its solver, for MMDiTs and for UNets."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sfumato.runtime.betas import ZERO_SNR_ALPHA, train_sigmas
from sfumato.runtime.schedules import euler_schedule, flow_schedule
from sfumato.train.distill.lora import Sampling
from sfumato.train.distill.source import Source

# The last level of diffusers' flow schedules is next to nothing (0.004 for a shift of 2): no lesson is in it.
LEAST_LEVEL = 0.02

Condition = dict[str, Any]


class Trajectory(nn.Module, ABC):
    """The denoiser as an ordinary differential equation: `slope` is how x changes with the noise level.

    A position (float32 [batch]) is a place on the trajectory: 0 is the picture, and even distances are even
    work for a solver. positions: where the student's steps begin, falling, float32 [n].
    """

    positions: Tensor

    def __init__(self, source: Source, guidance: float) -> None:
        super().__init__()
        self.source, self.guidance = source, guidance
        self.denoiser = source.denoiser
        self.encoders = nn.ModuleList(source.encoders())
        self.config = dict(source.pipe.scheduler.config)

    @abstractmethod
    def level(self, position: Tensor) -> Tensor:
        """The noise level sigma, rising with the position, 0 at 0."""

    @abstractmethod
    def slope(self, x: Tensor, position: Tensor, condition: Condition) -> Tensor:
        """dx / dsigma in float32, of x's shape."""

    @abstractmethod
    def weights(self) -> Tensor:
        """What an error of the slope costs in each of the student's steps: float32 [n], together 1."""

    @abstractmethod
    def conditions(
        self, captions: list[str], without_t5: Tensor, latents: Tensor
    ) -> tuple[Condition, Condition]:
        """Inputs for the captions, and these followed by those for as many absent ones.

        without_t5: bool [batch], whose T5 states are zeros where the model has any.
        """

    def nodes(self) -> Tensor:
        """Where the student's steps begin, and the end of the last: float32 [n + 1]."""
        return torch.cat([self.positions, self.positions.new_zeros(1)])

    def guided(self, x: Tensor, position: Tensor, both: Condition) -> Tensor:
        """The slope with guidance; `both` as from `conditions`."""
        given, empty = self.slope(x.repeat(2, 1, 1, 1), position.repeat(2), both).chunk(2)
        return empty + self.guidance * (given - empty)

    def solve(self, x: Tensor, nodes: list[Tensor], both: Condition, steps: int) -> list[Tensor]:
        """The guided trajectory from x at nodes[0] at every node; nodes are falling positions, each [batch].

        Two-step Adams-Bashforth, `steps` from node to node at even distances: with twelve from noise to
        picture, `mini` comes nearer to the solution than with 20 of its sampler (measured).
        """
        points, before = [x], None
        for start, end in pairwise(nodes):
            places = [torch.lerp(start, end, i / steps) for i in range(steps + 1)]
            for here, following in pairwise(places):
                slope = now = self.guided(x, here, both)
                step = (self.level(following) - self.level(here))[:, None, None, None]
                if before is not None:
                    slope = now + (now - before[0]) * step / before[1] / 2
                x = x + step * slope
                before = now, step
            points.append(x)
        return points


class FlowTrajectory(Trajectory):
    """Of an MMDiT: x = (1 - sigma) * x0 + sigma * noise. Positions are levels before the shift's square."""

    def __init__(self, source: Source, guidance: float, sampling: Sampling) -> None:
        super().__init__(source, guidance)
        self.shift = self.config["shift"] ** 2
        levels = torch.from_numpy(flow_schedule(self.config, sampling.steps).sigmas.copy())
        levels = levels[levels > LEAST_LEVEL]
        positions = levels / (self.shift - (self.shift - 1) * levels)
        self.register_buffer("positions", positions, persistent=False)

    def level(self, position: Tensor) -> Tensor:
        return self.shift * position / (1 + (self.shift - 1) * position)

    def slope(self, x: Tensor, position: Tensor, condition: Condition) -> Tensor:
        timesteps = self.level(position) * self.config["num_train_timesteps"]
        predicted: Tensor = self.denoiser(x, timestep=timesteps, **condition, return_dict=False)[0]
        return predicted.float()

    def weights(self) -> Tensor:
        lengths = -self.level(self.nodes()).diff()
        return lengths / lengths.sum()

    @torch.no_grad()
    def conditions(
        self, captions: list[str], without_t5: Tensor, latents: Tensor
    ) -> tuple[Condition, Condition]:
        side = latents.shape[-1] * self.source.pipe.vae_scale_factor
        both = self.source.encode([*captions, *[""] * len(captions)], side, latents.device)
        t5 = both["encoder_hidden_states"][:, -self.source.t5_tokens :]
        t5.masked_fill_(without_t5.repeat(2)[:, None, None], 0)
        return changed(both, lambda value: value[: len(captions)]), both


class NoiseTrajectory(Trajectory):
    """Of a UNet: x = x0 + sigma * noise (Karras et al. 2022).

    Positions are timesteps + 1, so that 0 is clean.
    """

    table: Tensor

    def __init__(self, source: Source, guidance: float, sampling: Sampling) -> None:
        super().__init__(source, guidance)
        steps = euler_schedule(self.config | sampling.scheduler, sampling.steps)
        table = np.append(np.float32(0), train_sigmas(self.config, ZERO_SNR_ALPHA))
        self.register_buffer("positions", torch.from_numpy(steps.timesteps + 1), persistent=False)
        self.register_buffer("table", torch.from_numpy(table), persistent=False)

    def level(self, position: Tensor) -> Tensor:
        below = position.long().clamp(max=len(self.table) - 2)
        return torch.lerp(self.table[below], self.table[below + 1], position - below)

    def slope(self, x: Tensor, position: Tensor, condition: Condition) -> Tensor:
        sigma = self.level(position)[:, None, None, None]
        scale = (sigma.square() + 1).sqrt()
        predicted: Tensor = self.denoiser(x / scale, position - 1, **condition, return_dict=False)[0]
        if self.source.prediction == "v_prediction":
            return (predicted.float() + x * sigma / scale) / scale
        return predicted.float()

    def weights(self) -> Tensor:
        """Of squared errors where a step lands, in latents of unit variance."""
        levels = self.level(self.nodes())
        costs = levels.diff().square() / (1 + levels[1:].square())
        return costs / costs.sum()

    @torch.no_grad()
    def conditions(
        self, captions: list[str], without_t5: Tensor, latents: Tensor
    ) -> tuple[Condition, Condition]:
        side = latents.shape[-1] * self.source.pipe.vae_scale_factor
        given = self.source.encode(captions, side, latents.device)
        return given, joined(given, self.source.encode_nothing(len(captions), side, latents.device))


def trajectory_of(source: Source, guidance: float, sampling: Sampling) -> Trajectory:
    """The trajectory of the source's kind, with the student's steps."""
    kind = FlowTrajectory if source.prediction == "flow" else NoiseTrajectory
    return kind(source, guidance, sampling)


def changed(condition: Condition, change: Callable[[Tensor], Tensor]) -> Condition:
    """The inputs with `change` done to every tensor."""
    return {
        name: changed(value, change) if isinstance(value, dict) else change(value)
        for name, value in condition.items()
    }


def joined(first: Condition, second: Condition) -> Condition:
    """The inputs of two batches as those of one."""
    return {
        name: joined(value, second[name]) if isinstance(value, dict) else torch.cat([value, second[name]])
        for name, value in first.items()
    }
