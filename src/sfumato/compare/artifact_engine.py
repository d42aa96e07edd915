"""A loaded model folder whose every picture is timed."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from PIL.Image import Image

from ..artifact import Artifact, find_model, load_artifact
from ..errors import InvalidRequest
from ..families import Array
from ..graphs.token_merging import Method
from ..manifest import Reuse
from ..runtime.devices import Device, Devices
from ..runtime.memory import available, choose
from ..runtime.merging import merging_of
from ..runtime.networks import Edit, Network, Shapes
from ..runtime.pipeline import Pipeline
from .profile import Operations, Profile, ProfiledDevice, profile_of
from .records import Model, Run
from .stopwatch import Stopwatch


class TimedNetwork(Network):
    """A network that tells `on_run` when each of its runs began and ended, by `time.perf_counter`."""

    def __init__(
        self,
        artifact: Artifact,
        name: str,
        device: Device,
        edit: Edit | None = None,
        *,
        on_run: "Callable[[TimedNetwork, float, float], None]",
    ) -> None:
        super().__init__(artifact, name, device, edit)
        self.name = name
        self.change = "" if edit is None else edit.name
        self._on_run = on_run

    def __call__(self, inputs: Any, outputs: Shapes) -> dict[str, Array]:
        self.load({name: array.shape for name, array in inputs.items()}, outputs)
        began = time.perf_counter()
        results = super().__call__(inputs, outputs)
        self._on_run(self, began, time.perf_counter())
        return results

    @property
    def operations(self) -> Operations:
        """What its operations took, on a ProfiledDevice.

        The CPU tells the mean of all runs since loading (OpenVINO 2026.4), other devices the last one.
        """
        operations: Operations = self._request.get_profiling_info()
        return operations


class ArtifactEngine:
    """A pipeline that makes pictures and says how long each part took.

    load_seconds: what the first picture spent on compiling networks.
    """

    def __init__(
        self,
        source: str,
        name: str,
        *,
        profiled: bool = False,
        device: str | Sequence[str] = "CPU",
        precision: str | None = None,
        threads: int | None = None,
        pinning: bool | None = None,
        cores: str | None = None,
        memory: str = "auto",
        token_merging: float | None = None,
        merging_method: Method = "match",
        reuse: Reuse | None = None,
    ) -> None:
        """See `Worker` and `Pipeline.load`."""
        artifact = load_artifact(find_model(source))
        self.model = described(artifact, source, name)
        self.load_seconds = 0.0
        self._reuse = reuse
        self._profiled = profiled
        self._pictures = 0
        self._runs: Counter[TimedNetwork] = Counter()
        self._operations: dict[TimedNetwork, Operations] = {}
        self._watch = Stopwatch(artifact.family.denoiser)
        kept = choose(memory, [artifact], available())
        kind, cached = (ProfiledDevice, False) if profiled else (Device, kept == "high")
        like = kind("CPU", precision, threads, cached=cached, pinning=pinning, cores=cores)
        devices = Devices.parse(device, tuple(artifact.manifest.components), like)
        merging = merging_of(artifact, token_merging, merging_method)
        make = partial(TimedNetwork, on_run=self._ran)
        self._pipeline = Pipeline(artifact, devices, kept, make, merging)

    def generate(
        self,
        prompt: str,
        *,
        negative: str | None = None,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        size: tuple[int, int] | None = None,
    ) -> tuple[Image, Run]:
        """One picture, and what it took; None is the model's default. Raises as a pipeline's call does."""
        self._pipeline.texts.forget()
        watch = self._watch = Stopwatch(self._pipeline.artifact.family.denoiser)
        result = self._pipeline(
            prompt,
            negative_prompt=negative,
            seed=seed,
            steps=steps,
            guidance=guidance,
            size=size,
            reuse=self._reuse,
            on_step=lambda step: watch.step(),
        )
        seconds = result.seconds
        if not self._pictures:
            self.load_seconds = seconds["load"]
        self._pictures += 1
        loading = seconds["load"] if self._pipeline.memory == "high" else 0.0
        image: Image = result.images[0]
        return image, Run(
            encode=seconds["encode"],
            steps=watch.steps,
            denoise=seconds["denoise"],
            decode=seconds["decode"],
            total=seconds["total"] - loading,
            components=watch.components,
            reuse=result.request.reuse,
            guidance_every=result.request.guidance_every if result.request.guided else 1,
        )

    def profile(self) -> Profile:
        """Where the time of a picture goes; InvalidRequest unless it was to be profiled and made some."""
        if not self._operations:
            raise InvalidRequest(f"{self.model.name}: no profile; ask for one before, and make a picture")
        titles = {network: self._title(network) for network in self._operations}
        found = {title: self._operations[network] for network, title in titles.items()}
        runs = {title: self._runs[network] / self._pictures for network, title in titles.items()}
        return profile_of(found, runs)

    def _ran(self, network: TimedNetwork, began: float, ended: float) -> None:
        self._watch.ran(network.name, began, ended)
        if self._profiled:
            self._operations[network] = network.operations
            self._runs[network] += 1

    def _title(self, network: TimedNetwork) -> str:
        """The network's name, and which of them it is where reuse makes several of one."""
        alone = [each.name for each in self._operations].count(network.name) == 1
        return network.name if alone else f"{network.name} that {network.change}"


def described(artifact: Artifact, source: str, name: str) -> Model:
    """What a model folder is, before anything is measured."""
    manifest = artifact.manifest
    return Model(
        name=name,
        source=source,
        kind="artifact",
        family=manifest.family,
        precision=manifest.precision,
        recipe=None if manifest.recipe is None else manifest.recipe.name,
        components={
            component: manifest.files[f"{component}/openvino_model.bin"].bytes
            for component in manifest.components
        },
        disk_bytes=manifest.bytes,
        size=manifest.latents.default_size,
        steps=manifest.sampling.steps,
        guidance=manifest.sampling.guidance,
        latent_channels=manifest.latents.channels,
    )
