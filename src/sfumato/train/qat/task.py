"""What quantization-aware training minimizes: the training loss, and the distance to the teacher."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sfumato.train.distill.lora import halve, inference
from sfumato.train.distill.source import Source
from sfumato.train.examples import Examples
from sfumato.train.loop import Task
from sfumato.train.qat.levels import Noising
from sfumato.train.qat.student import Quantizers

RANGES = "ranges"
"""The group of parameters that are quantizers' ranges, with a learning rate of its own."""
BLOCKS = ("down_blocks", "mid_block", "up_blocks", "transformer_blocks")
"""Where diffusers' denoisers keep their blocks."""


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Weights of what is added up. data: the distance to the target. teacher: to what the floating-point
    denoiser says. features: to what its blocks give, each as a share of that."""

    data: float = 1.0
    teacher: float = 1.0
    features: float = 0.0

    @property
    def taught(self) -> bool:
        return self.teacher > 0 or self.features > 0


class Conditioned:
    """Training pictures' latents, noised, with the denoiser's other inputs."""

    def __init__(self, source: Source, examples: Examples, noising: Noising, dropout: float) -> None:
        self.source, self.examples, self.noising, self.dropout = source, examples, noising, dropout

    def draw(self, size: int, rng: np.random.Generator) -> tuple[Tensor, list[str], Tensor]:
        """Latents, captions, and which of these (bool [size]) are dropped, as guidance needs it."""
        latents, captions = self.examples.draw(size, rng)
        return latents, captions, torch.from_numpy(rng.random(size) < self.dropout)

    def inputs(self, latents: Tensor, captions: list[str], dropped: Tensor) -> dict[str, Any]:
        """The denoiser's inputs besides noised latents and timesteps."""
        side = latents.shape[-1] * self.source.pipe.vae_scale_factor
        given = self.source.encode(captions, side, latents.device)
        if not dropped.any():
            return given
        nothing = self.source.encode_nothing(1, side, latents.device)
        return _where(dropped, nothing, given)


def _where(chosen: Tensor, one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Rows of `one` where chosen, else of `other`, in nested dicts of tensors."""
    return {
        key: _where(chosen, one[key], value)
        if isinstance(value, Mapping)
        else torch.where(chosen.view(-1, *[1] * (value.dim() - 1)), one[key], value)
        for key, value in other.items()
    }


class QatTask(Task):
    """A denoiser with quantizers learns to be what it was without them.

    teacher: the denoiser in floating point, or None where it is `denoiser` itself inside of `plain`, which
    turns quantizers and token merging off: with low-rank adapters its weights do not change.
    """

    def __init__(
        self,
        denoiser: Any,
        quantizers: Quantizers,
        teacher: Any,
        plain: Callable[[], AbstractContextManager[None]],
        shown: Conditioned,
        losses: Losses,
        quantizers_only: bool = False,
    ) -> None:
        super().__init__()
        self.denoiser, self.quantizers = denoiser, quantizers
        self.teacher, self.plain = teacher, plain
        self.shown, self.losses = shown, losses
        self.encoders = nn.ModuleList(shown.source.encoders())
        frozen = quantizers_only or bool(quantizers.adapters())
        denoiser.requires_grad_(not frozen)
        for parameter in (*quantizers.ranges(), *(() if quantizers_only else quantizers.adapters())):
            parameter.requires_grad_(True)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        return {RANGES: self.quantizers.ranges()}

    def averaged(self) -> dict[str, nn.Parameter]:
        """All that is trained but the ranges."""
        ranges = {id(each) for each in self.quantizers.ranges()}
        return {
            name: parameter
            for name, parameter in self.named_parameters()
            if parameter.requires_grad and id(parameter) not in ranges
        }

    def draw(self, size: int, rng: np.random.Generator, generator: torch.Generator) -> tuple[Any, ...]:
        """Latents, captions, which of these are dropped, noise, timesteps."""
        latents, captions, dropped = self.shown.draw(size, rng)
        noise = torch.randn(latents.shape, generator=generator)
        return latents, captions, dropped, noise, self.shown.noising.timesteps(size, generator)

    def forward(
        self, latents: Tensor, captions: list[str], dropped: Tensor, noise: Tensor, timesteps: Tensor
    ) -> dict[str, Tensor]:
        """The losses: "loss" is their weighted sum, the others are given as they are."""
        noised, target = self.shown.noising.mix(latents, noise, timesteps)
        with inference():
            condition = self.shown.inputs(latents, captions, dropped)
        features: list[Tensor] = []
        with self._watched(self.denoiser, features):
            predicted = predict(self.denoiser, noised, timesteps, condition)
        figures = {"data": (predicted - target).square().mean()}
        loss = self.losses.data * figures["data"]
        if self.losses.taught:
            taught, wanted = self._teach(noised, timesteps, condition)
            weight = self.shown.noising.weight(timesteps)
            figures["teacher"] = ((predicted - taught).square().mean((1, 2, 3)) * weight).mean()
            loss = loss + self.losses.teacher * figures["teacher"]
            if features:
                figures["features"] = torch.stack(
                    [_share(given, want) for given, want in zip(features, wanted, strict=True)]
                ).mean()
                loss = loss + self.losses.features * figures["features"]
        return {"loss": loss, **figures}

    def _teach(
        self, noised: Tensor, timesteps: Tensor, condition: dict[str, Any]
    ) -> tuple[Tensor, list[Tensor]]:
        """What the teacher predicts, and what its blocks give."""
        features: list[Tensor] = []
        with inference():
            if self.teacher is not None:
                with self._watched(self.teacher, features):
                    return predict(self.teacher, noised, timesteps, condition), features
            with self.plain(), self._watched(self.denoiser, features):
                return predict(self.denoiser, noised, timesteps, condition), features

    @contextmanager
    def _watched(self, denoiser: Any, features: list[Tensor]) -> Iterator[None]:
        """Gather what the blocks give; only meanwhile, as checkpointing runs them again later."""

        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            features.extend(each.float() for each in _tensors(output))

        watched = _blocks(denoiser) if self.losses.features else []
        hooks = [block.register_forward_hook(hook) for block in watched]
        try:
            yield
        finally:
            for each in hooks:
                each.remove()


def teacher_of(denoiser: Any) -> Any:
    """A frozen copy of a denoiser, its layers in bfloat16."""
    teacher = deepcopy(denoiser).requires_grad_(False).eval()
    halve(teacher)
    return teacher


def predict(denoiser: Any, noised: Tensor, timesteps: Tensor, condition: dict[str, Any]) -> Tensor:
    """The raw prediction, float32 like the noised latents."""
    predicted: Tensor = denoiser(noised, timestep=timesteps, **condition, return_dict=False)[0]
    return predicted.float()


def _blocks(denoiser: Any) -> list[nn.Module]:
    found = [getattr(denoiser, name) for name in BLOCKS if getattr(denoiser, name, None) is not None]
    return [block for each in found for block in (each if isinstance(each, nn.ModuleList) else [each])]


def _tensors(output: Any) -> Iterator[Tensor]:
    """The tensors in what a block returns: one, or nested tuples of them."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, tuple | list):
        for each in output:
            yield from _tensors(each)


def _share(given: Tensor, wanted: Tensor) -> Tensor:
    """Squared error as a share of the wanted tensor's power."""
    return (given - wanted).square().mean() / wanted.square().mean().clamp_min(1e-12)
