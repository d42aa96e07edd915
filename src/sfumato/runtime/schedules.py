"""Noise schedules: from the values of a scheduler_config to the sigmas and timesteps of every step.

Two spaces. "vp" (SD, SDXL) in the form of Karras et al. 2022: x = x0 + sigma * noise, while the model sees
x / sqrt(sigma**2 + 1). "flow" (SD3): x = (1 - sigma) * x0 + sigma * noise, which the model sees as it is.
Numbers are those of diffusers' schedulers, float32 where rounding shows in a picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidRequest
from .betas import (
    TINY_ALPHA,
    ZERO_SNR_ALPHA,
    Array,
    Config,
    number,
    train_sigmas,
    train_timesteps,
    value,
)
from .spacings import Doubles, Spacing

Space = Literal["vp", "flow"]

LEAST_SHIFT, MOST_SHIFT = 0.001, 1000.0
TIMESTEP_SPACINGS = ("leading", "linspace", "trailing")


@dataclass(frozen=True, eq=False)
class Schedule:
    """The sigmas that a sampler visits.

    sigmas: [n + 1] float32, falling; step i goes from sigmas[i] to sigmas[i + 1].
    timesteps: [n] float32, what the model is told at each step; fractional for flow and Karras sigmas.
    initial_scale: unit noise times this is x at sigmas[0].
    landings, departures: [n] float32. DDIM and PNDM step by a fixed stride of timesteps, so where the stride
        does not divide the timesteps evenly diffusers takes x from step i to landings[i], then reads the same
        variance-preserving latents as if at sigmas[i + 1]; departures[i] is one stride above step i. None
        where steps meet.
    train_timesteps: how many the model was trained with; timesteps count from 0 to it.
    """

    sigmas: Array
    timesteps: Array
    space: Space
    initial_scale: float = 1.0
    landings: Array | None = None
    departures: Array | None = None
    train_timesteps: int = 1000

    def __len__(self) -> int:
        """Number of steps."""
        return len(self.timesteps)

    def part(self, start: int, stop: int | None = None) -> Schedule:
        """Return steps start to stop: the end for image-to-image, either side of a hand-over to a refiner."""
        stop = len(self) if stop is None else stop
        return replace(
            self,
            sigmas=self.sigmas[start : stop + 1],
            timesteps=self.timesteps[start:stop],
            landings=None if self.landings is None else self.landings[start:stop],
            departures=None if self.departures is None else self.departures[start:stop],
        )

    def start_for(self, strength: float) -> int:
        """Return the step at which image-to-image starts: strength 1 does all steps, 0 does none.

        Rounded as in diffusers' pipelines: a broken step is left out for vp, done for flow.
        """
        done = min(len(self) * strength, len(self))
        return len(self) - int(done) if self.space == "vp" else int(len(self) - done)

    def cut(self, switch_at: float) -> int:
        """Return the first step of the second stage, if the first ends after that share of the noise.

        switch_at: 0 to 1, measured in timesteps as diffusers' denoising_end and denoising_start: the first
        stage has those at (1 - switch_at) * train_timesteps and above.
        """
        least = round(self.train_timesteps - switch_at * self.train_timesteps)
        return int(np.count_nonzero(self.timesteps >= least))

    def index(self, timestep: float) -> int:
        """Return the first step at which the model is told `timestep`, one of `timesteps`."""
        return int(np.argmin(np.abs(self.timesteps - np.float32(timestep))))

    def landing(self, i: int) -> float:
        """Return the sigma at which step i ends."""
        return float(self.sigmas[i + 1] if self.landings is None else self.landings[i])

    def departure(self, i: int) -> float:
        """Return the sigma from which one step leads to sigmas[i], i > 0."""
        return float(self.sigmas[i - 1] if self.departures is None else self.departures[i])

    def begin(self, noise: Array) -> Array:
        """Return x at sigmas[0] from standard normal noise, [batch, channels, height, width] float32."""
        return noise * np.float32(self.initial_scale)

    def noised(self, clean: Array, noise: Array) -> Array:
        """Return x at sigmas[0] from clean latents in the model's scale and standard normal noise.

        All [batch, channels, height, width] float32.
        """
        sigma = self.sigmas[0]
        kept = np.float32(1.0) if self.space == "vp" else np.float32(1.0) - sigma
        x: Array = clean * kept + noise * sigma
        return x

    def finish(self, x: Array) -> Array:
        """Return latents for the decoder from x at the last sigma, above zero for some DDIM and PNDM."""
        return x * np.float32(vp_scale(float(self.sigmas[-1]))) if self.space == "vp" else x


def vp_scale(sigma: float) -> float:
    """Return what turns x of the Karras form into the latents that VP models are trained on."""
    return 1.0 / math.sqrt(sigma * sigma + 1.0)


def same_latents(x: Array, sigma: float, other: float) -> Array:
    """Return the x at `other` that has the variance-preserving latents of x at `sigma`."""
    return x if sigma == other else x * (vp_scale(sigma) / vp_scale(other))


def euler_schedule(config: Config, steps: int, spacing: Spacing | None = None) -> Schedule:
    """Schedule of EulerDiscreteScheduler and EulerAncestralDiscreteScheduler.

    A spacing goes from the first to the last sigma of the configuration's own timesteps.
    """
    table = train_sigmas(config, ZERO_SNR_ALPHA)
    timestep_spacing = _timestep_spacing(config, "linspace")
    timesteps = _spaced(config, steps, timestep_spacing)
    if timestep_spacing != "linspace":
        timesteps = timesteps.round()
    sigmas = _sigmas_at(timesteps, table)
    if spacing is not None:
        sigmas = spacing.sigmas(float(sigmas[0]), float(sigmas[-1]), steps)
        timesteps = _timesteps_at(sigmas, table)
    ended = _ending_in(sigmas, 0.0)
    scale = _unit_variance(ended) if timestep_spacing == "leading" else float(ended[0])
    return Schedule(ended, _float32(timesteps), "vp", scale, train_timesteps=len(table))


def ddim_schedule(config: Config, steps: int, set_alpha_to_one: bool = True) -> Schedule:
    """Schedule of DDIMScheduler; set_alpha_to_one is the default where the configuration is silent."""
    table = train_sigmas(config, TINY_ALPHA)
    last = 0.0 if value(config, "set_alpha_to_one", set_alpha_to_one) else float(table[0])
    timesteps = _spaced(config, steps, _timestep_spacing(config, "leading")).round()
    sigmas = _ending_in(_sigmas_at(timesteps, table), last)
    stride = len(table) // steps
    landed = timesteps - stride
    landings = np.where(landed >= 0, _sigmas_at(landed, table), last)
    return Schedule(
        sigmas,
        _float32(timesteps),
        "vp",
        _unit_variance(sigmas),
        landings=_float32(landings),
        departures=_float32(_sigmas_at(timesteps + stride, table)),
        train_timesteps=len(table),
    )


def pndm_schedule(config: Config, steps: int) -> Schedule:
    """Schedule of PNDMScheduler with skip_prk_steps; the repeated second timestep is the sampler's affair."""
    silent = {key: value for key, value in config.items() if key != "rescale_betas_zero_snr"}
    return ddim_schedule(silent, steps, set_alpha_to_one=False)


def multistep_schedule(
    config: Config, steps: int, spacing: Spacing | None = None, cosine_apart: bool = True
) -> Schedule:
    """Schedule of DPMSolverMultistepScheduler.

    cosine_apart: Karras timesteps of cosine betas are not rounded, but cut off.
    """
    table = train_sigmas(config, ZERO_SNR_ALPHA)
    if spacing is not None:
        sigmas = spacing.sigmas(float(table[-1]), float(table[0]), steps)
        cosine = value(config, "beta_schedule", "linear") == "squaredcos_cap_v2"
        whole = np.trunc if cosine and cosine_apart else spacing.whole
        timesteps = whole(_timesteps_at(sigmas, table))
    else:
        timestep_spacing = _timestep_spacing(config, "linspace")
        timesteps = _spaced(config, steps, timestep_spacing, end_points=True).round()
        sigmas = _sigmas_at(timesteps, table)
    ended = _ending_in(sigmas, 0.0)
    if (np.diff(ended) >= 0.0).any():
        raise InvalidRequest(f"steps {steps}: some would start at the same noise level; choose fewer steps")
    return Schedule(ended, _float32(timesteps), "vp", _unit_variance(ended), train_timesteps=len(table))


def unipc_schedule(config: Config, steps: int, spacing: Spacing | None = None) -> Schedule:
    """Schedule of UniPCMultistepScheduler."""
    return multistep_schedule(config, steps, spacing, cosine_apart=False)


def lcm_schedule(config: Config, steps: int) -> Schedule:
    """Schedule of LCMScheduler: a selection of the `original_inference_steps` of the distillation."""
    silent = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    config = silent | {key: value for key, value in config.items() if value is not None}
    table = train_sigmas(config, TINY_ALPHA)
    original = int(number(config, "original_inference_steps", 50, least=1, most=len(table)))
    if steps > original:
        raise InvalidRequest(
            f"steps {steps}: the lcm sampler takes at most {original}, the steps of its distillation"
        )
    taught = np.arange(original, 0, -1) * (len(table) // original) - 1
    timesteps = taught[np.floor(np.linspace(0, original, steps, endpoint=False)).astype(int)].astype(
        np.float64
    )
    sigmas = _ending_in(_sigmas_at(timesteps, table), 0.0)
    return Schedule(sigmas, _float32(timesteps), "vp", _unit_variance(sigmas), train_timesteps=len(table))


def flow_schedule(config: Config, steps: int, spacing: Spacing | None = None) -> Schedule:
    """Schedule of FlowMatchEulerDiscreteScheduler (the shift: Esser et al. 2024, section 5.3.2).

    The shift is applied twice, as diffusers does: once to the ends of the range, once to the steps between.
    A spacing goes from the first to the last sigma that this gives.
    """
    train, shift = train_timesteps(config), number(config, "shift", 1.0, LEAST_SHIFT, MOST_SHIFT)

    def shifted(sigma: Doubles) -> Doubles:
        return shift * sigma / (1.0 + (shift - 1.0) * sigma)

    first, last = (float(sigma) for sigma in _float32(shifted(np.array([1.0, 1.0 / train]))))
    levels = shifted(np.linspace(first * train, last * train, steps) / train)
    if spacing is not None:
        levels = spacing.sigmas(float(levels[0]), float(levels[-1]), steps)
    sigmas = _float32(levels)
    return Schedule(_ending_in(sigmas, 0.0), sigmas * np.float32(train), "flow", train_timesteps=train)


def _timestep_spacing(config: Config, default: str) -> str:
    spacing = str(value(config, "timestep_spacing", default))
    if spacing not in TIMESTEP_SPACINGS:
        raise InvalidRequest(f"timestep_spacing {spacing!r}: must be one of {', '.join(TIMESTEP_SPACINGS)}")
    return spacing


def _spaced(config: Config, steps: int, spacing: str, end_points: bool = False) -> Doubles:
    """Timesteps from high to low (Lin et al. 2024, table 2); end_points: 0 is a point too, then dropped."""
    train = train_timesteps(config)
    points = steps + end_points
    if points > train:
        raise InvalidRequest(f"steps {steps}: at most {train - end_points} with {train} training timesteps")
    if spacing == "trailing":
        return np.arange(train, 0, -train / steps).round() - 1.0
    if spacing == "leading":
        rising = np.arange(0.0, points) * (train // points) + number(config, "steps_offset", 0, 0, train)
    else:
        rising = np.linspace(0.0, train - 1.0, points)
    return rising[::-1][:steps]


def _sigmas_at(timesteps: Doubles, table: Array) -> Doubles:
    return np.interp(timesteps, np.arange(len(table)), table)


def _timesteps_at(sigmas: Doubles, table: Array) -> Doubles:
    """The fractional timesteps of sigmas, linear in log sigma."""
    return np.interp(np.log(sigmas), np.log(table), np.arange(len(table), dtype=np.float64))


def _unit_variance(sigmas: Array) -> float:
    return math.sqrt(float(sigmas[0]) ** 2 + 1.0)


def _ending_in(sigmas: NDArray[np.floating[Any]], last: float) -> Array:
    return np.append(sigmas, last).astype(np.float32)


def _float32(values: NDArray[np.floating[Any]]) -> Array:
    return values.astype(np.float32)
