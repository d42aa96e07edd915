"""Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598) and its refinements around a denoiser."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import InvalidRequest
from ..families import Array, Family
from .history import History
from .networks import Network
from .reuse import OUTPUT, ReusingNetwork
from .schedules import Schedule
from .skip_layers import SkipLayers
from .values import number

BEGINNING = 4
"""Steps that always run the negative prompt: there the prompt's share changes fastest (docs/reuse.md)."""


@dataclass(frozen=True)
class Guidance:
    """How the prompt's prediction and the negative prompt's become one.

    scale: how many times what the prompt changes.
    rescale: 0 to 1, how far the result gets the prompt's own standard deviation back, against overexposure
        (Lin et al. 2024, arXiv 2305.08891, section 3.4).
    interval: (low, high); only steps with low < sigma <= high are guided (Kynkäänniemi et al. 2024,
        arXiv 2404.07724), as the schedule counts sigmas: 0.03 to 14.6 for SD and SDXL, 0 to 1 for flow.
    skip: layers to guide away from, besides.
    every: after the first few steps the negative prompt runs once in so many; between, what the prompt
        changes goes on along the line through the last two times.
    Raises InvalidRequest for values that make no sense.
    """

    scale: float
    rescale: float = 0.0
    interval: tuple[float, float] | None = None
    skip: SkipLayers | None = None
    every: int = 1

    def __post_init__(self) -> None:
        number("guidance rescale", self.rescale, 0.0, 1.0)
        if self.interval is not None and not 0.0 <= self.interval[0] < self.interval[1]:
            low, high = self.interval
            raise InvalidRequest(
                f"guidance interval {low!r} to {high!r}: must be two noise levels from 0, rising"
            )

    def covers(self, sigma: float) -> bool:
        """Whether a step from this sigma is guided."""
        return self.interval is None or self.interval[0] < sigma <= self.interval[1]


class GuidedModel:
    """The denoiser with its conditioning: (model input, timestep) -> noise or velocity.

    conditioning: the prompt's, then the negative prompt's where there is one; those two run as one batch,
        negative first. Where some steps do without the negative one they run one after the other, and at
        those the prompt's alone, at half the cost.
    schedule: the steps that are taken. keys: for each whether it is a key step, where the network reuses
        features; see `compared`.
    skipping: the network without the layers of `guidance.skip`; needed where that is given.
    """

    def __init__(
        self,
        network: Network | ReusingNetwork,
        family: Family,
        conditioning: Sequence[Mapping[str, Array]],
        guidance: Guidance,
        schedule: Schedule,
        skipping: Network | None = None,
        keys: Sequence[bool] | None = None,
    ) -> None:
        self._network = network
        self._latents_input = family.latents_input
        self._prompt = conditioning[0]
        self._guided = len(conditioning) > 1
        parts = conditioning[::-1]
        together = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        self._batches = [together] if guidance.interval is None and guidance.every == 1 else parts
        self._compared = compared(len(schedule), guidance.every, keys)
        self._differences = History()
        self._guidance = guidance
        self._schedule = schedule
        self._skipping = skipping if self._guided and guidance.skip else None

    def load(self, latents: tuple[int, ...], extra: int = 0) -> None:
        """Compile what is needed for latents of this shape, [1, channels, height, width].

        extra: further channels that the denoiser takes.
        """
        self._load(self._network, self._batches[0], latents, extra)
        if self._skipping is not None:
            self._load(self._skipping, self._prompt, latents, extra)

    def __call__(self, x: Array, timestep: float, extra: Array | None = None) -> Array:
        """Predict for scaled latents x, [1, channels, height, width]; the result has the same shape.

        extra: further channels that the denoiser takes, [1, channels, height, width].
        """
        if extra is not None:
            x = np.concatenate([x, extra], axis=1)
        step = self._schedule.index(timestep)
        if not self._guided or not self._guidance.covers(float(self._schedule.sigmas[step])):
            return self._predict(self._network, self._prompt, x, timestep)
        scale = np.float32(self._guidance.scale)
        difference = None if self._compared[step] else self._differences.at(step)
        if difference is not None:
            positive = self._predict(self._network, self._prompt, x, timestep)
            guided = positive + (scale - 1) * difference
        else:
            outputs = [self._predict(self._network, batch, x, timestep) for batch in self._batches]
            negative, positive = np.split(np.concatenate(outputs), 2)
            self._differences.add(step, positive - negative)
            guided = negative + scale * (positive - negative)
        guided = self._without_layers(guided, positive, x, timestep, step)
        return rescaled(guided, positive, self._guidance.rescale)

    def _without_layers(self, guided: Array, positive: Array, x: Array, timestep: float, step: int) -> Array:
        skip = self._guidance.skip
        if skip is None or self._skipping is None or not skip.at(step, len(self._schedule)):
            return guided
        weaker = self._predict(self._skipping, self._prompt, x, timestep)
        return guided + (positive - weaker) * np.float32(skip.scale)

    def _load(
        self,
        network: Network | ReusingNetwork,
        batch: Mapping[str, Array],
        latents: tuple[int, ...],
        extra: int,
    ) -> None:
        shapes = {name: array.shape for name, array in batch.items()}
        count = _length(batch)
        shapes[self._latents_input] = (count, latents[1] + extra, *latents[2:])
        shapes["timestep"] = (count,)
        network.load(shapes, {OUTPUT: (count, *latents[1:])})

    def _predict(
        self, network: Network | ReusingNetwork, batch: Mapping[str, Array], x: Array, timestep: float
    ) -> Array:
        latents = np.repeat(x, _length(batch), axis=0)
        timesteps = np.full(len(latents), timestep, np.float32)
        inputs = {**batch, self._latents_input: latents, "timestep": timesteps}
        return network(inputs, {OUTPUT: (len(latents), -1, *latents.shape[2:])})[OUTPUT]


def compared(steps: int, every: int, keys: Sequence[bool] | None = None) -> list[bool]:
    """For each step whether the negative prompt runs: at the first few steps, and then at one in `every`.

    keys: which steps are key steps, where a network reuses features; then it runs at these, as the other
    steps tell nothing new.
    """
    if every > 1 and keys is not None:
        return list(keys)
    return [step < BEGINNING or (step - BEGINNING) % every == every - 1 for step in range(steps)]


def rescaled(guided: Array, positive: Array, share: float) -> Array:
    """Return the guided prediction with `share` of its change of standard deviation taken back.

    guided and positive, the prompt's own prediction: [batch, channels, height, width] float32.
    """
    if share == 0.0:
        return guided
    deviations = [each.std(axis=(1, 2, 3), ddof=1, keepdims=True) for each in (positive, guided)]
    factor = np.float32(share) * (deviations[0] / deviations[1]) + np.float32(1.0 - share)
    result: Array = guided * factor
    return result


def guidance_embedding(scale: float, width: int) -> Array:
    """A guidance scale as denoisers take it that were distilled with it: sinusoids, [1, width] float32.

    As timesteps are embedded (Vaswani et al. 2017), of 1000 (scale - 1): the w of Luo et al. 2023
    (arXiv 2310.04378), which is 0 where nothing is guided. Sines, cosines, and a zero where the width is odd.
    Angles are in float32, as the networks saw them in training, of functions that are taken in float64.
    """
    half = width // 2
    rate = np.log(np.float32(10000.0)) / np.float32(half - 1)
    exponents = np.arange(half, dtype=np.float32) * -rate
    frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)
    angles = np.float32(scale - 1.0) * np.float32(1000.0) * frequencies
    waves = np.concatenate([wave(angles.astype(np.float64)) for wave in (np.sin, np.cos)])
    return np.pad(waves.astype(np.float32), (0, width % 2))[None]


def _length(batch: Mapping[str, Array]) -> int:
    return len(next(iter(batch.values())))
