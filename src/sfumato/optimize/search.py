"""Looking for the layers that must stay in floating point, for recipes with [search].

Each group of layers that reads one activation is quantized alone, and the pictures that it makes are held
against the model's own. Then the worst go back to floating point, as few as keep the limits.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count

import numpy as np
from numpy.typing import NDArray

from ..artifact import Artifact
from ..compare import Evaluator, psnr, recall
from ..compare.judge import reads
from ..errors import SfumatoError
from ..runtime.devices import Device, core
from ..runtime.networks import Edit, Network
from . import OnSample
from .apply import change, quantized
from .calibration import Plan, Seen, begin, pipeline_of
from .job import Job
from .layers import Layer, find_layers
from .prompts import pick
from .quantize import shared
from .recipe import Search

PROBES, PROBE_STEPS = 2, 8
"""Pictures, and most steps, by which each group of layers is judged alone."""
Pixels = NDArray[np.uint8]
EQUAL = 100.0
"""dB that equal pictures count as."""
FIRST_SEED = 10_000
"""Away from the seeds of the calibration."""


@dataclass(frozen=True)
class Group:
    """Layers of a component that read one activation, by name."""

    component: str
    layers: tuple[str, ...]


def search(
    job: Job, limits: Search, seen: Mapping[str, Seen], plan: Plan, device: Device, on_sample: OnSample
) -> dict[str, tuple[str, ...]]:
    """The layers to keep in floating point, by component: the fewest that keep the limits.

    on_sample: told how many groups of layers were tried, and of how many.
    Raises SfumatoError where the limits cannot be kept with all of them in floating point.
    """
    groups = _groups(job)
    studio = _Studio(job, seen, plan, device)
    harm = {}
    rounds = 1 + math.ceil(math.log2(len(groups) + 1))
    done = count(1)
    for group in groups:
        harm[group] = studio.harm(group)
        on_sample(next(done), len(groups) + rounds)
    worst = sorted(groups, key=lambda group: harm[group], reverse=True)

    def holds(kept: int) -> bool:
        found = studio.holds(_by_component(worst[:kept]), limits)
        on_sample(min(next(done), len(groups) + rounds), len(groups) + rounds)
        return found

    fewest = _fewest(len(worst), holds)
    on_sample(len(groups) + rounds, len(groups) + rounds)
    return _by_component(worst[:fewest])


def _fewest(most: int, holds: Callable[[int], bool]) -> int:
    """The least count up to `most` for which `holds`, which is true from some count on."""
    if holds(0):
        return 0
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    if high == most and not holds(most):
        raise SfumatoError(
            "the limits of [search] cannot be kept: with all these layers in floating point, what else the "
            'recipe changes is still too much; lower psnr, raise r1, or give some components mode "keep"'
        )
    return high


def _by_component(groups: list[Group]) -> dict[str, tuple[str, ...]]:
    names = sorted({group.component for group in groups})
    return {
        name: tuple(sorted(layer for group in groups if group.component == name for layer in group.layers))
        for name in names
    }


def _groups(job: Job) -> list[Group]:
    """What could stay in floating point: the layers that the recipe quantizes with their activations.

    The VAE's encoder is left out, as it has no part in a picture of a prompt.
    """
    groups = []
    for name in job.sampled:
        readers = shared(quantized(_layers(job, name), job.components[name]))
        groups += [Group(name, tuple(layer.name for layer in each)) for each in readers.values()]
    return [group for group in groups if group.component != "vae_encoder"]


def _layers(job: Job, component: str) -> list[Layer]:
    return find_layers(core().read_model(job.artifact.path / component / "openvino_model.xml"))


class _Studio:
    """Makes the same pictures with more or less of a model quantized, without writing one."""

    def __init__(self, job: Job, seen: Mapping[str, Seen], plan: Plan, device: Device) -> None:
        self._job, self._seen, self._plan, self._device = job, seen, plan, device
        self._steps = min(PROBE_STEPS, plan.steps)
        self._few = self._pictures({}, PROBES, self._steps)
        self._float: Pixels | None = None
        self._names = {name: {layer.name for layer in _layers(job, name)} for name in job.sampled}

    def harm(self, group: Group) -> float:
        """Mean square change of a few pictures, in levels of 0..255, where this group alone is quantized."""
        name = group.component
        others = self._names[name] - set(group.layers)
        edit = partial(change, recipe=self._job.components[name], seen=self._seen[name], further=others)
        found = self._pictures({name: Edit("alone", edit)}, PROBES, self._steps)
        return float(np.square(found.astype(np.float64) - self._few).mean())

    def holds(self, kept: Mapping[str, tuple[str, ...]], limits: Search) -> bool:
        """Whether the whole recipe, but for these layers, keeps the limits."""
        if self._float is None:
            self._float = self._pictures({}, limits.prompts, self._plan.steps)
        edits = {
            name: Edit(
                "all", partial(change, recipe=each, seen=self._seen.get(name, {}), further=kept.get(name, ()))
            )
            for name, each in self._job.components.items()
        }
        found = self._pictures(edits, limits.prompts, self._plan.steps)
        likeness = np.mean([min(psnr(a, b), EQUAL) for a, b in zip(found, self._float, strict=True)])
        return bool(likeness >= limits.psnr and self._lost(found, limits.prompts) <= limits.r1)

    def _lost(self, found: Pixels, number: int) -> float:
        """How much R@1 the pictures lose; none where the evaluator does not know what they show."""
        captions = pick(self._plan.captions, number)
        evaluator = Evaluator()
        if self._float is None or not reads(evaluator, captions):
            return 0.0
        texts = evaluator.embed(captions)
        before, after = (
            recall(evaluator.read(each).embedding, texts, captions, 1) for each in (self._float, found)
        )
        return before - after

    def _pictures(self, edits: Mapping[str, Edit], number: int, steps: int) -> Pixels:
        """uint8 [number, height, width, 3], with these changes to networks, by component."""
        artifact = self._job.artifact

        def make(artifact: Artifact, name: str, device: Device, edit: Edit | None) -> Network:
            return Network(artifact, name, device, edits.get(name, edit))

        pipe = pipeline_of(artifact, self._device, make)
        settings = {
            "guidance": self._plan.guidance,
            "size": self._plan.size,
            **begin(artifact, self._plan.size),
        }
        made = [
            pipe(caption, seed=FIRST_SEED + i, steps=steps, **settings).images[0]
            for i, caption in enumerate(pick(self._plan.captions, number))
        ]
        return np.stack([np.asarray(picture) for picture in made])
