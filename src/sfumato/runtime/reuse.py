"""Reuse between steps: deep features come from key steps, the steps between run the rest of the network."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import Any, get_args

from numpy.typing import NDArray

from ..artifact import Artifact
from ..errors import InvalidRequest
from ..families import Array
from ..graphs.deep_features import FEATURES, take_features, tell_features
from ..manifest import Reuse
from .devices import Device
from .history import History
from .networks import Edit, MakeNetwork, Network, Shapes
from .schedules import Schedule
from .values import did_you_mean

LEAST_STEPS = 8
"""With fewer steps each one changes too much for the next."""
OUTPUT = "out_sample"
"""What a denoiser predicts, by its name in the graph."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """Which steps are key steps, and what the others leave to them.

    depth: see `graphs.deep_features`; None is the cheap one. count: of key steps, however many steps there
    are; of few steps a share of `most` at most, but not fewer than `least`. fitted: where key steps are, as
    shares of the schedule from 0 up, instead of as many as that on the curve of `falling`. rest_every: of the
    steps between, one in so many runs the rest of the network; for the others its output goes on along the
    line.
    """

    depth: int | None
    count: int
    most: float = 1.0
    least: int = 1
    fitted: tuple[float, ...] | None = None
    rest_every: int = 1

    def key_steps(self, steps: int) -> list[bool]:
        """For each step whether it is a key step."""
        shares = self.fitted or falling(min(self.count, max(self.least, math.ceil(self.most * steps))))
        chosen = {round(share * steps) for share in shares}
        return [step in chosen for step in range(steps)]

    def running(self, keys: Sequence[bool]) -> list[bool]:
        """For each step whether the network runs, or the rest of it; keys: which are key steps."""
        last = list(accumulate((step if key else 0 for step, key in enumerate(keys)), max))
        return [(step - before) % self.rest_every == 0 for step, before in enumerate(last)]


def falling(count: int) -> tuple[float, ...]:
    """So many key steps that become rarer on the way: early ones decide what the picture shows."""
    return tuple((number / count) ** 1.4 for number in range(count))


PLANS: dict[tuple[str, Reuse], Plan] = {
    ("unet", "balanced"): Plan(None, 11, 0.4, 4, rest_every=2),
    ("unet", "fast"): Plan(None, 7, 0.25, 4, rest_every=3),
    ("mmdit", "balanced"): Plan(None, 12, 0.45, 6, rest_every=2),
    ("mmdit", "fast"): Plan(None, 8, 0.35, 5, rest_every=3),
}
"""Of models that none was fitted to; why these stands in docs/reuse.md."""


def plan_of(artifact: Artifact, reuse: Reuse) -> Plan:
    """How a model reuses: at the key steps that were fitted to it, where they were."""
    family = artifact.family
    plan = PLANS[family.component(family.denoiser).kind, reuse]
    fitted = artifact.manifest.sampling.key_steps.get(reuse)
    return plan if fitted is None else replace(plan, fitted=fitted)


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


class _Seen:
    """What was found for one text: features at key steps, and outputs."""

    def __init__(self) -> None:
        self.features, self.outputs = History(), History()


class ReusingNetwork:
    """A denoiser of two networks that stands for one: at each step it runs the one that is due, if any.

    What is found is kept for each text apart. keys: for each step that was planned for whether it is a key
    step.
    """

    def __init__(
        self,
        artifact: Artifact,
        device: Device,
        plan: Plan,
        merging: Edit | None = None,
        make: MakeNetwork = Network,
    ) -> None:
        name, depth = artifact.family.denoiser, plan.depth
        take = Edit(f"takes features at {_said(depth)}", partial(_edited, take_features, depth))
        self._whole = make(artifact, name, device, telling(depth).after(merging))
        self._rest = make(artifact, name, device, take.after(merging))
        self._plan = plan
        self._schedule: Schedule | None = None
        self._seen: dict[int, _Seen] = {}
        self._running: list[bool] = []
        self.keys: list[bool] = []

    def begin(self, schedule: Schedule, deterministic: bool) -> None:
        """Plan for these steps. deterministic: they add no noise, which a network must see to remove it."""
        self._schedule = schedule
        self.keys = self._plan.key_steps(len(schedule))
        self._running = self._plan.running(self.keys) if deterministic else [True] * len(schedule)
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
        seen = self._seen.setdefault(id(inputs["encoder_hidden_states"]), _Seen())
        ahead = None if self._running[step] else seen.outputs.at(step)
        if ahead is not None:
            return {OUTPUT: ahead}
        features = None if self.keys[step] else seen.features.at(step)
        if features is not None:
            told = self._rest({**inputs, FEATURES: features}, outputs)
        else:
            told = self._whole(inputs, {**outputs, FEATURES: self._whole.shape_of(FEATURES)})
            seen.features.add(step, told.pop(FEATURES))
        seen.outputs.add(step, told[OUTPUT])
        return told

    def release(self) -> None:
        """Let go of both networks, and of the features."""
        self._whole.release()
        self._rest.release()
        self._seen.clear()


class ReusingDenoiser:
    """The denoiser in its two networks, made when asked for; the last pair is kept."""

    def __init__(
        self,
        artifact: Artifact,
        device: Device,
        merging: Edit | None = None,
        make: MakeNetwork = Network,
    ) -> None:
        self._artifact = artifact
        self._device = device
        self._merging = merging
        self._make = make
        self._made: tuple[Plan, ReusingNetwork] | None = None

    def by(self, reuse: Reuse, schedule: Schedule, deterministic: bool) -> ReusingNetwork:
        """The networks for pictures of these steps, not loaded yet. deterministic: they add no noise."""
        plan = plan_of(self._artifact, reuse)
        if self._made is None or self._made[0] != plan:
            self.release()
            self._made = plan, ReusingNetwork(self._artifact, self._device, plan, self._merging, self._make)
        network = self._made[1]
        network.begin(schedule, deterministic)
        return network

    def release(self) -> None:
        """Let go of the compiled networks."""
        if self._made is not None:
            self._made[1].release()


def telling(depth: int | None) -> Edit:
    """The change that has a denoiser tell its features."""
    return Edit(f"tells features at {_said(depth)}", partial(_edited, tell_features, depth))


def _said(depth: int | None) -> str:
    return "its cheap depth" if depth is None else f"depth {depth}"


def _edited(change: Any, depth: int | None, model: Any) -> None:
    try:
        change(model, depth)
    except ValueError as error:
        raise InvalidRequest(f"reuse: {error}; give --reuse off") from error
