"""Which steps are to be key steps, from how a model's deep features change along its own pictures.

Reuse foretells features from those of the key steps before (`runtime.history`). Every such prediction is a
weighted sum of features that were seen, so the inner products of all steps' features with one another, one
small matrix, tell the error of any prediction, and the best set of key steps is found exactly.
"""

from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..artifact import Artifact
from ..families import Array
from ..graphs.deep_features import FEATURES
from ..manifest import Reuse
from ..runtime.devices import Device
from ..runtime.history import History
from ..runtime.networks import Edit, Network, Shapes
from ..runtime.progress import Step
from ..runtime.reuse import PLANS, telling
from ..runtime.samplers import find_sampler
from ..runtime.schedules import Schedule
from . import OnSample
from .calibration import begin, pipeline_of

Doubles = NDArray[np.float64]
MOST_NUMBERS = 2**20
"""So many of a step's features are looked at; of more, evenly spaced ones."""


def inner_products(
    artifact: Artifact, depth: int | None, captions: Sequence[str], device: Device, on_sample: OnSample
) -> Doubles:
    """Mean products of the deep features of all steps, [steps, steps], over one picture of each caption.

    on_sample: told how many runs of the denoiser are done, and of how many.
    """
    steps = artifact.manifest.sampling.steps
    denoiser = artifact.family.denoiser
    watched: list[_Watched] = []

    def make(artifact: Artifact, name: str, device: Device, edit: Edit | None) -> Network:
        if name != denoiser:
            return Network(artifact, name, device, edit)
        watched.append(_Watched(artifact, name, device, telling(depth).after(edit)))
        return watched[-1]

    pipe = pipeline_of(artifact, device, make)
    products = np.zeros((steps, steps))
    for number, caption in enumerate(captions):
        told = partial(_told, on_sample, number * steps, len(captions) * steps)
        pipe(caption, seed=number, steps=steps, on_step=told, output_type="latent", **begin(artifact, None))
        features = np.stack([each for network in watched for each in network.taken()])
        products += (features @ features.T) / (features.shape[1] * len(captions))
    return products


def step_lengths(schedule: Schedule) -> Doubles:
    """How far each step takes the latents for an error of 1 in the prediction, [steps].

    In flow models the difference of sigmas; in variance-preserving ones the same for latents of unit
    variance.
    """
    sigmas = schedule.sigmas.astype(np.float64)
    lengths: Doubles = np.abs(np.diff(sigmas))
    return lengths if schedule.space == "flow" else lengths / np.sqrt(1 + sigmas[:-1] ** 2)


def best_keys(products: Doubles, lengths: Doubles, count: int) -> tuple[int, ...]:
    """The key steps, 0 and count - 1 more, whose predictions of the other steps err least.

    products: see `inner_products`. lengths: what a step's squared error weighs.
    """
    steps = len(products)

    @cache
    def errors(keys: tuple[int, ...]) -> Doubles:
        """Of predictions from these keys, summed up to each step after the last one: [steps + 1]."""
        each = np.zeros(steps + 1)
        for step in range(keys[-1] + 1, steps):
            each[step + 1] = lengths[step] * prediction_error(products, keys, step)
        return np.cumsum(each)

    # Of all ways to the same last keys only the best one matters for what comes after.
    best: dict[tuple[int, ...], tuple[float, tuple[int, ...]]] = {(0,): (0.0, (0,))}
    for _ in range(min(count, steps) - 1):
        longer: dict[tuple[int, ...], tuple[float, tuple[int, ...]]] = {}
        for last, (error, path) in best.items():
            for step in range(last[-1] + 1, steps):
                keys = (*last, step)[-2:]
                found = (error + errors(last)[step], (*path, step))
                longer[keys] = min(longer.get(keys, found), found)
        best = longer
    return min((error + errors(last)[steps], path) for last, (error, path) in best.items())[1]


def prediction_error(products: Doubles, keys: Sequence[int], step: int) -> float:
    """Mean square of what reuse's prediction at a step, from these keys, is off."""
    alone, history = np.eye(len(products)), History()
    for key in keys:
        history.add(key, alone[key])
    weights = history.at(step) - alone[step]
    return float(weights @ products @ weights)


def fitted(
    artifact: Artifact, captions: Sequence[str], device: Device, on_sample: OnSample
) -> dict[Reuse, tuple[float, ...]]:
    """For each way of reuse, with as many key steps as it has, where this model's are best.

    Pictures are made of the captions, of the model's own number of steps, each in full. Key steps are told as
    shares of the schedule.
    """
    sampling, family = artifact.manifest.sampling, artifact.family
    kind = family.component(family.denoiser).kind
    plans = {reuse: plan for (of, reuse), plan in PLANS.items() if of == kind}
    sampler = find_sampler(sampling.sampler)
    lengths = step_lengths(sampler.schedule(sampling.scheduler, sampling.steps, family=family.name))
    (depth,) = {plan.depth for plan in plans.values()}
    products = inner_products(artifact, depth, captions, device, on_sample)
    counts = {reuse: sum(plan.key_steps(sampling.steps)) for reuse, plan in plans.items()}
    best = {reuse: best_keys(products, lengths, count) for reuse, count in counts.items()}
    return {reuse: tuple(key / sampling.steps for key in keys) for reuse, keys in best.items()}


class _Watched(Network):
    """A denoiser that keeps the deep features of its runs, by timestep."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._features: dict[float, Array] = {}

    def __call__(self, inputs: Mapping[str, NDArray[Any]], outputs: Shapes) -> dict[str, Array]:
        told = super().__call__(inputs, {**outputs, FEATURES: self.shape_of(FEATURES)})
        numbers = told.pop(FEATURES).ravel()
        stride = -(-len(numbers) // MOST_NUMBERS)
        self._features[float(inputs["timestep"][0])] = numbers[::stride].astype(np.float64)
        return told

    def taken(self) -> list[Array]:
        """Features of each step, [numbers], in order; none are kept."""
        features, self._features = self._features, {}
        return list(features.values())


def _told(on_sample: OnSample, before: int, total: int, step: Step) -> None:
    on_sample(min(before + step.index + 1, total), total)
