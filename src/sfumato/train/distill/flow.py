"""What the distillations of flow-matching MMDiTs share: the guided teacher and its solver."""

from itertools import pairwise

import torch
from torch import Tensor

from sfumato.runtime.schedules import flow_schedule
from sfumato.train.distill.lora import Sampling
from sfumato.train.distill.source import Source
from sfumato.train.examples import Examples
from sfumato.train.loop import Task

# The last level of diffusers' schedules is next to nothing (0.004 for a shift of 2): no lesson is in it.
LEAST_LEVEL = 0.02


class FlowTask(Task):
    """An MMDiT with a LoRA, and its teacher: the same MMDiT without the LoRA, guided.

    levels: the noise levels at which the student is used, falling, float32.
    """

    def __init__(self, source: Source, examples: Examples, guidance: float, sampling: Sampling) -> None:
        super().__init__()
        self.source, self.examples, self.guidance, self.sampling = source, examples, guidance, sampling
        self.denoiser = source.denoiser
        self.encoders = torch.nn.ModuleList(source.encoders())
        config = dict(source.pipe.scheduler.config)
        self.train_timesteps, self.shift = config["num_train_timesteps"], config["shift"]
        levels = torch.from_numpy(flow_schedule(config, sampling.steps).sigmas.copy())
        self.register_buffer("levels", levels[levels > LEAST_LEVEL], persistent=False)

    def velocity(self, x: Tensor, sigma: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """The MMDiT's prediction, noise - x0, in float32."""
        timesteps = sigma * self.train_timesteps
        predicted: Tensor = self.denoiser(x, timestep=timesteps, **condition, return_dict=False)[0]
        return predicted.float()

    def guided(self, x: Tensor, sigma: Tensor, both: dict[str, Tensor]) -> Tensor:
        """The velocity with guidance; `both` are the prompts' inputs, then those of as many empty ones."""
        given, empty = self.velocity(x.repeat(2, 1, 1, 1), sigma.repeat(2), both).chunk(2)
        return empty + self.guidance * (given - empty)

    def solve(self, x: Tensor, nodes: list[Tensor], both: dict[str, Tensor], steps: int) -> list[Tensor]:
        """The guided flow from x at nodes[0] at every node; nodes are falling noise levels, each [batch].

        Two-step Adams-Bashforth, `steps` from node to node, evenly spaced before the square of the model's
        shift: with twelve from noise to picture, `mini` comes nearer to the solution than with 20 of its
        sampler (measured).
        """
        points, before = [x], None
        for start, end in pairwise(self.unshifted(node) for node in nodes):
            levels = [self.shifted(torch.lerp(start, end, i / steps)) for i in range(steps + 1)]
            for level, following in pairwise(levels):
                velocity = slope = self.guided(x, level, both)
                step = (following - level)[:, None, None, None]
                if before is not None:
                    slope = velocity + (velocity - before[0]) * step / before[1] / 2
                x = x + step * slope
                before = velocity, step
            points.append(x)
        return points

    def shifted(self, level: Tensor) -> Tensor:
        """The noise level at an evenly spaced one."""
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
