"""Samplers by name: which function, on which schedule, for which space; and the one call that runs them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import InvalidRequest
from .betas import Array, Config, value
from .denoiser import Denoiser, Known, Model, OnStep, Prediction, ignore
from .multistep import dpmpp_2m, pndm, unipc
from .noise import NoiseSource
from .schedules import (
    LEAST_SHIFT,
    MOST_SHIFT,
    Schedule,
    Space,
    ddim_schedule,
    euler_schedule,
    flow_schedule,
    lcm_schedule,
    multistep_schedule,
    pndm_schedule,
    unipc_schedule,
)
from .singlestep import ddim, euler, euler_ancestral, flow_renoise, lcm
from .spacings import CONFIGURED, Spacing, configured_spacing, find_spacing
from .values import did_you_mean, number

MAX_STEPS = 1000
Accepted = dict[str, tuple[Any, ...]]
"""Configuration keys with the values that a sampler can honour."""


@dataclass(frozen=True)
class Sampler:
    """One way through a schedule.

    run: (denoise, x, schedule, on_step) -> x; with a noise source before on_step where stochastic.
    accepts: configuration values it can honour, of those that it would have to.
    spacings: names of those it can use; build_schedule takes one as a third argument.
    fixed: configuration values that its name stands for.
    eta: the share of noise that is drawn anew where no other is asked for; None where run takes none.
    """

    name: str
    run: Callable[..., Array]
    build_schedule: Callable[..., Schedule]
    space: Space
    stochastic: bool = False
    accepts: Accepted = field(default_factory=dict)
    spacings: tuple[str, ...] = ()
    fixed: Config = field(default_factory=dict)
    eta: float | None = None

    def schedule(
        self,
        config: Config,
        steps: int,
        spacing: str | None = None,
        shift: float | None = None,
        family: str | None = None,
    ) -> Schedule:
        """Return the schedule of `steps` steps for raw scheduler_config values, absent ones as in diffusers.

        spacing: one of SPACINGS; shift: the timestep shift of a flow model; None is what the configuration
        says. family: name of the model's family, which the spacing "ays" depends on.
        Raises InvalidRequest for steps, a configuration, spacing or shift that the sampler cannot use.
        """
        if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= MAX_STEPS:
            raise InvalidRequest(f"steps {steps}: must be a whole number from 1 to {MAX_STEPS}")
        config = {**config, **self.fixed, **self._shift(shift)}
        self._check_config(config)
        chosen = self._spacing(config, spacing, family)
        with np.errstate(all="ignore"):
            schedule = self.build_schedule(config, steps, *([chosen] if chosen else []))
        if not np.isfinite(schedule.sigmas).all() or not (schedule.sigmas[:-1] > 0.0).all():
            raise InvalidRequest("scheduler_config: its betas give no usable noise levels")
        return schedule

    def check_eta(self, eta: float | None) -> None:
        """Raise InvalidRequest unless eta is None, or from 0 to 1 and the sampler takes it."""
        if eta is None:
            return
        if self.eta is None:
            there = [
                name for name, each in SAMPLERS.items() if each.eta is not None and each.space == self.space
            ]
            choice = f"choose sampler {' or '.join(there)}, or leave it out" if there else "leave it out"
            raise InvalidRequest(f"eta {eta!r}: {self.name} takes none; {choice}")
        number("eta", eta, 0.0, 1.0)

    def draws_noise(self, eta: float | None) -> bool:
        """Whether steps add fresh noise; eta: the share that is asked for, if any."""
        own = 1.0 if self.eta is None else self.eta
        return self.stochastic and (own if eta is None else eta) > 0.0

    def _shift(self, shift: float | None) -> Config:
        if shift is None:
            return {}
        if self.space != "flow":
            raise InvalidRequest(f"shift {shift!r}: only flow models (SD3) have one; leave it out")
        return {"shift": number("shift", shift, LEAST_SHIFT, MOST_SHIFT)}

    def _check_config(self, config: Config) -> None:
        for key, accepted in self.accepts.items():
            if (given := value(config, key, accepted[0])) not in accepted:
                choice = " or ".join(repr(one) for one in accepted)
                raise InvalidRequest(
                    f"scheduler_config {key} {given!r}: {self.name} needs {choice}; choose another sampler"
                )

    def _spacing(self, config: Config, name: str | None, family: str | None) -> Spacing | None:
        """The spacing asked for, else the configuration's, which means nothing to some diffusers classes."""
        if name is None:
            name = configured_spacing(config)
            return find_spacing(name) if name in self.spacings else None
        spacing = find_spacing(name, family)
        if name not in self.spacings:
            own = f"{self.name} takes {', '.join(self.spacings) or 'none'}"
            fits = [
                other.name
                for other in SAMPLERS.values()
                if name in other.spacings and other.space == self.space
            ]
            raise InvalidRequest(
                f"spacing {name!r}: {own}; samplers that take it: {', '.join(fits) or 'none'}"
            )
        return spacing

    def calls(self, steps: int) -> int:
        """Return how often the model, and on_step, are called for a schedule of `steps` steps."""
        return steps + 1 if self.run is pndm and steps > 1 else steps


# What a scheduler_config may say where diffusers offers more than is here; the first stands for silence.
# clip_sample is no matter: diffusers' Stable Diffusion pipelines switch it off.
NO_THRESHOLD: Accepted = {"thresholding": (False,)}
PLAIN_SIGMAS: Accepted = {
    "use_lu_lambdas": (False,),
    "use_flow_sigmas": (False,),
    "final_sigmas_type": ("zero",),
}
EULER: Accepted = PLAIN_SIGMAS | {"interpolation_type": ("linear",), "timestep_type": ("discrete",)}
PNDM: Accepted = {"skip_prk_steps": (True,)}
SECOND_ORDER: Accepted = PLAIN_SIGMAS | NO_THRESHOLD | {"solver_order": (2,)}
DPMPP: Accepted = SECOND_ORDER | {
    "algorithm_type": ("dpmsolver++", "deis"),
    "solver_type": ("midpoint", "logrho", "bh1", "bh2"),
    "lambda_min_clipped": (-math.inf,),
}
UNIPC: Accepted = SECOND_ORDER | {
    "predict_x0": (True,),
    "solver_type": ("bh2", "midpoint", "heun", "logrho"),
    "disable_corrector": ([],),
}
FLOW: Accepted = PLAIN_SIGMAS | {
    "use_dynamic_shifting": (False,),
    "invert_sigmas": (False,),
    "shift_terminal": (None,),
}


RANGED = ("karras", "exponential", "beta")
EVERY = (*RANGED, "ays")
PLAIN = {"use_karras_sigmas": False}
KARRAS = dict.fromkeys(CONFIGURED, False) | {"use_karras_sigmas": True}

SAMPLERS: dict[str, Sampler] = {
    sampler.name: sampler
    for sampler in (
        Sampler("euler", euler, euler_schedule, "vp", accepts=EULER, spacings=EVERY),
        Sampler(
            "euler-ancestral",
            euler_ancestral,
            euler_schedule,
            "vp",
            stochastic=True,
            spacings=("ays",),
            eta=1.0,
        ),
        Sampler("ddim", ddim, ddim_schedule, "vp", stochastic=True, accepts=NO_THRESHOLD, eta=0.0),
        Sampler("pndm", pndm, pndm_schedule, "vp", accepts=PNDM),
        Sampler("dpmpp-2m", dpmpp_2m, multistep_schedule, "vp", accepts=DPMPP, spacings=EVERY, fixed=PLAIN),
        Sampler(
            "dpmpp-2m-karras",
            dpmpp_2m,
            multistep_schedule,
            "vp",
            accepts=DPMPP,
            spacings=("karras",),
            fixed=KARRAS,
        ),
        Sampler("unipc", unipc, unipc_schedule, "vp", accepts=UNIPC, spacings=EVERY),
        Sampler("lcm", lcm, lcm_schedule, "vp", stochastic=True, accepts=NO_THRESHOLD),
        Sampler("flow-euler", euler, flow_schedule, "flow", accepts=FLOW, spacings=RANGED),
        Sampler(
            "flow-renoise",
            flow_renoise,
            flow_schedule,
            "flow",
            stochastic=True,
            accepts=FLOW,
            spacings=RANGED,
        ),
    )
}

SCHEDULER_CLASSES = {
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler-ancestral",
    "DDIMScheduler": "ddim",
    "PNDMScheduler": "pndm",
    "DPMSolverMultistepScheduler": "dpmpp-2m",
    "UniPCMultistepScheduler": "unipc",
    "LCMScheduler": "lcm",
    "FlowMatchEulerDiscreteScheduler": "flow-euler",
    "FlashFlowMatchEulerDiscreteScheduler": "flow-renoise",
}


def sampler_for(class_name: str, config: Config) -> str:
    """Return the name of our sampler for a diffusers scheduler, from its class and scheduler_config.

    Raises InvalidRequest for a class that has none here.
    """
    name = SCHEDULER_CLASSES.get(class_name)
    if name is None:
        raise InvalidRequest(
            f"scheduler {class_name!r}: no sampler for it; supported are {', '.join(SCHEDULER_CLASSES)}"
        )
    if name == "dpmpp-2m" and value(config, "use_karras_sigmas", False):
        return "dpmpp-2m-karras"
    if name == "flow-euler" and value(config, "stochastic_sampling", False):
        return "flow-renoise"
    return name


def find_sampler(name: str, space: Space | None = None) -> Sampler:
    """Return the sampler called `name`; raises InvalidRequest naming those of the space if there is none."""
    names = [known for known, sampler in SAMPLERS.items() if space in (None, sampler.space)]
    if name in names:
        return SAMPLERS[name]
    hint = did_you_mean(name, names)
    kind = f" for {space} models" if name in SAMPLERS else ""
    raise InvalidRequest(f"sampler {name!r}: no such sampler{kind}; {hint}choose one of {', '.join(names)}")


def sample(
    name: str,
    model: Model,
    noise: Array,
    config: Config,
    steps: int,
    prediction: Prediction,
    generator: NoiseSource,
    on_step: OnStep = ignore,
) -> Array:
    """Return latents for the decoder from standard normal noise, [batch, channels, height, width] float32.

    model: (input, timestep) -> raw prediction of the kind `prediction`. config: raw scheduler_config values.
    generator: draws what stochastic samplers add, usually going on from where `noise` came from.
    on_step: see OnStep; called SAMPLERS[name].calls(steps) times.
    Raises InvalidRequest for an unknown name, steps, or a sampler of the other space than the prediction's.
    """
    sampler = find_sampler(name, "flow" if prediction == "flow" else "vp")
    schedule = sampler.schedule(config, steps)
    x = run(sampler, model, schedule.begin(noise), schedule, prediction, generator, on_step)
    return schedule.finish(x)


def run(
    sampler: Sampler,
    model: Model,
    x: Array,
    schedule: Schedule,
    prediction: Prediction,
    generator: NoiseSource,
    on_step: OnStep = ignore,
    eta: float | None = None,
    known: Known | None = None,
) -> Array:
    """Take x from the first to the last sigma of a schedule or a part of one; arguments as for `sample`.

    eta: share of noise that each step draws anew, 0 to 1; None is the sampler's own: 0 for ddim, 1 for
    euler-ancestral. known: what is not repainted. Raises InvalidRequest for an eta that does not fit.
    """
    sampler.check_eta(eta)
    denoise = Denoiser(model, schedule, prediction, known)
    source = [generator] if sampler.stochastic else []
    options = {} if eta is None else {"eta": float(eta)}
    return sampler.run(denoise, x, schedule, *source, on_step, **options)
