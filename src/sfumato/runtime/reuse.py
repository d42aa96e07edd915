"""Reuse between steps: deep features come from key steps, the steps between run the rest of the network."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..artifact import Artifact
from ..errors import InvalidRequest
from ..families import Array
from ..graphs.deep_features import FEATURES, take_features, tell_features
from .devices import Device
from .networks import Edit, Network, Shapes
from .schedules import Schedule
from .values import did_you_mean

Reuse = Literal["off", "balanced", "fast"]
LEAST_STEPS = 8
"""With fewer steps each one changes too much for the next."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """Which steps are key steps, and what the others leave to them.

    depth: see `graphs.deep_features`. warm: share of the steps, at the beginning, that are all key steps;
    there the picture takes shape. every: one in so many of the further steps is a key step. order: 0 takes
    the features as they were, 1 goes on along the line through the last two key steps (Taylor prediction).
    """

    depth: int
    warm: float
    every: int
    order: int = 0

    def keys(self, steps: int) -> list[bool]:
        """For each step whether it is a key step; the first one always is."""
        warm = max(1, math.ceil(self.warm * steps))
        return [step < warm or (step - warm) % self.every == self.every - 1 for step in range(steps)]


PLANS: dict[tuple[str, Reuse], Plan] = {
    ("unet", "balanced"): Plan(depth=1, warm=0.1, every=3, order=1),
    ("unet", "fast"): Plan(depth=1, warm=0.1, every=5, order=1),
    ("mmdit", "balanced"): Plan(depth=1, warm=0.2, every=2, order=1),
    ("mmdit", "fast"): Plan(depth=1, warm=0.2, every=3, order=1),
}
"""Chosen by what they cost and how near the pictures stay: docs/reuse.md."""


def check_reuse(name: str, value: Any) -> Reuse:
    """One of Reuse. Raises InvalidRequest."""
    known = get_args(Reuse)
    if value not in known:
        raise InvalidRequest(
            f"{name} {value!r}: {did_you_mean(str(value), known)}There is {', '.join(known)}"
        )
    chosen: Reuse = value
    return chosen


def enough_steps(reuse: Reuse, steps: int) -> Reuse:
    """The way that was asked for; off, with a warning, where so few steps have nothing to reuse."""
    if reuse != "off" and steps < LEAST_STEPS:
        _log.warning("reuse %s: off, as %d steps are too few; it takes %d", reuse, steps, LEAST_STEPS)
        return "off"
    return reuse


class ReusingNetwork:
    """A denoiser of two networks that stands for one: at each step it runs the one that is due.

    Features are kept for each text apart, until the next picture begins.
    """

    def __init__(self, artifact: Artifact, device: Device, plan: Plan, merging: Edit | None = None) -> None:
        name, depth = artifact.family.denoiser, plan.depth
        tell = Edit(f"tells features at depth {depth}", partial(_edited, tell_features, depth))
        take = Edit(f"takes features at depth {depth}", partial(_edited, take_features, depth))
        self._whole = Network(artifact, name, device, tell.after(merging))
        self._rest = Network(artifact, name, device, take.after(merging))
        self._plan = plan
        self._schedule: Schedule | None = None
        self._keys: list[bool] = []
        self._seen: dict[int, list[tuple[int, Array]]] = {}

    def begin(self, schedule: Schedule) -> None:
        """Plan for these steps."""
        self._schedule = schedule
        self._keys = self._plan.keys(len(schedule))
        self._seen.clear()

    def load(self, inputs: Shapes, outputs: Shapes) -> None:
        """As a network; both are compiled."""
        self._whole.load(inputs, outputs)
        features = self._whole.shape_of(FEATURES)
        self._rest.load({**inputs, FEATURES: features}, outputs)

    def __call__(self, inputs: Mapping[str, NDArray[Any]], outputs: Shapes) -> dict[str, Array]:
        """As a network, at one of the timesteps that were planned for."""
        assert self._schedule is not None, "begin comes first"
        step = self._schedule.index(float(inputs["timestep"][0]))
        text = id(inputs["encoder_hidden_states"])
        # Features of this step or a later one are of the picture before; some samplers call a step twice.
        seen = [each for each in self._seen.get(text, []) if each[0] < step]
        if self._keys[step] or not seen:
            told = self._whole(inputs, {**outputs, FEATURES: self._whole.shape_of(FEATURES)})
            self._seen[text] = [*seen[-1:], (step, told.pop(FEATURES))]
            return told
        return self._rest({**inputs, FEATURES: predicted(seen, step, self._plan.order)}, outputs)

    def release(self) -> None:
        """Let go of both networks, and of the features."""
        self._whole.release()
        self._rest.release()
        self._seen.clear()


class ReusingDenoiser:
    """The denoiser in its two networks, made when asked for; the last pair is kept."""

    def __init__(self, artifact: Artifact, device: Device, merging: Edit | None = None) -> None:
        self._artifact = artifact
        self._device = device
        self._merging = merging
        self._made: tuple[Plan, ReusingNetwork] | None = None

    def by(self, reuse: Reuse, schedule: Schedule) -> ReusingNetwork:
        """The networks for pictures of these steps, not loaded yet."""
        family = self._artifact.family
        plan = PLANS[family.component(family.denoiser).kind, reuse]
        if self._made is None or self._made[0] != plan:
            self.release()
            self._made = plan, ReusingNetwork(self._artifact, self._device, plan, self._merging)
        network = self._made[1]
        network.begin(schedule)
        return network

    def release(self) -> None:
        """Let go of the compiled networks."""
        if self._made is not None:
            self._made[1].release()


def predicted(seen: list[tuple[int, Array]], step: int, order: int) -> Array:
    """Features at a step, from those of the last key steps, which are given with their numbers."""
    last, features = seen[-1]
    if order == 0 or len(seen) < 2:
        return features
    before, earlier = seen[-2]
    share = np.float32((step - last) / (last - before))
    ahead: Array = features + share * (features - earlier)
    return ahead


def _edited(change: Any, depth: int, model: Any) -> None:
    try:
        change(model, depth)
    except ValueError as error:
        raise InvalidRequest(f"reuse: {error}; give --reuse off") from error
