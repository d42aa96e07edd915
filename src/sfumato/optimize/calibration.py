"""Calibration: the model makes pictures of captions while its networks are looked at.

What was seen is kept on the disk after each picture, so that a killed run goes on, and the next recipe for
the same model finds it.
"""

import hashlib
import json
import os
import struct
import time
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from ..artifact import Artifact
from ..families import Array
from ..files import atomic_file, write_errors
from ..runtime.build import build_request
from ..runtime.cache import cache_folder
from ..runtime.devices import Device, Devices
from ..runtime.memory import Kept, weights
from ..runtime.networks import Edit, MakeNetwork, Network
from ..runtime.pipeline import Pipeline
from .layers import Source
from .observe import Observer, Statistics
from .prompts import negatives, pick
from .sampling import in_full

Seen = dict[Source, Statistics]
OnSample = Callable[[int, int], None]
ROWS = 256
"""About how many rows of each of the denoiser's activations are kept over all samples; other networks run
once a picture, and give as many rows each time."""
MOST_ROWS = 32
SMALL = 10**9
"""Bytes of weights up to which all networks stay loaded from one picture to the next."""
KEPT_DAYS = 14
FORMAT = 1
"""Counts up when what is noted changes its meaning."""
NOT_SEEN: dict[str, bool | set[str]] = {
    "name": True,
    "source": True,
    "sampling": {"reuse", "guidance_every", "key_steps"},
}
"""Of the manifest, what makes no difference to what is seen."""
FIELDS = ("low", "high", "mean", "power", "rows")


@dataclass(frozen=True)
class Plan:
    """Which pictures are made. captions, negatives: one for each picture; seeds count up from 0."""

    captions: tuple[str, ...]
    negatives: tuple[str | None, ...]
    steps: int
    guidance: float
    size: tuple[int, int]
    rows: int


def plan(
    artifact: Artifact,
    prompts: list[str],
    samples: int,
    negative_share: float,
    steps: int | None,
    guidance: float | None,
    size: tuple[int, int] | None,
) -> Plan:
    """As many pictures as give `samples` runs of the denoiser, each timestep equally often.

    What is None is the model's default; fewer samples than steps make one picture in as many steps.
    negative_share: share of the pictures with a negative prompt.
    """
    given = {"steps": steps, "guidance": guidance, "size": size, **begin(artifact, size)}
    request = build_request(artifact.manifest, prompts[0], given)
    taken = min(request.steps, samples)
    count = -(-samples // taken)
    against = cycle(negatives())
    share = negative_share if request.guided else 0.0
    chosen = [next(against) if int(share * (i + 1)) > int(share * i) else None for i in range(count)]
    rows = min(MOST_ROWS, -(-ROWS // (count * taken)))
    captions = tuple(pick(prompts, count))
    return Plan(captions, tuple(chosen), taken, request.guidance, request.size, rows)


def calibrate(
    artifact: Artifact, components: Collection[str], chosen: Plan, device: Device, on_sample: OnSample
) -> dict[str, Seen]:
    """Make the planned pictures; returns what the layers of these components read.

    on_sample: told how many runs of the denoiser are done, and of how many.
    """
    store = _Store(artifact, sorted(components), chosen, device)
    total = len(chosen.captions) * chosen.steps
    watched: _Watched | None = None
    for number in range(len(chosen.captions)):
        if not store.has(number):
            watched = watched or _Watched(artifact, components, chosen, device)
            done = partial(_done, on_sample, number * chosen.steps, total)
            store.put(number, watched.picture(number, done))
        on_sample((number + 1) * chosen.steps, total)
    return store.together(len(chosen.captions))


def _done(on_sample: OnSample, before: int, total: int, step: int) -> None:
    on_sample(before + step, total)


def pipeline_of(artifact: Artifact, device: Device, make: MakeNetwork) -> Pipeline:
    """A pipeline on one device whose networks `make` makes; large models hold one network at a time.

    Every step runs in full, whatever the model's default: `make` is to see all of it.
    """
    sampling = in_full(artifact.manifest.sampling)
    artifact = Artifact(artifact.path, artifact.manifest.model_copy(update={"sampling": sampling}))
    kept: Kept = "high" if weights(artifact) <= SMALL else "low"
    devices = Devices.parse("CPU", dict.fromkeys(artifact.manifest.components), device)
    return Pipeline(artifact, devices, kept, make)


class _Watched:
    """A pipeline whose networks are looked at."""

    def __init__(self, artifact: Artifact, components: Collection[str], chosen: Plan, device: Device) -> None:
        self._artifact, self._plan = artifact, chosen
        self._observers: dict[str, list[Observer]] = {name: [] for name in components}
        self._pipeline = pipeline_of(artifact, device, self._make)

    def _make(self, artifact: Artifact, name: str, device: Device, edit: Edit | None) -> Network:
        if name not in self._observers:
            return Network(artifact, name, device, edit)
        observer = Observer(artifact, name, device, edit, rows=self._plan.rows)
        self._observers[name].append(observer)
        return observer

    def picture(self, number: int, on_step: Callable[[int], None]) -> dict[str, Seen]:
        """Make one, and return what was seen, by component."""
        self._pipeline.texts.forget()  # what is seen must not depend on the pictures before
        result = self._pipeline(
            self._plan.captions[number],
            negative_prompt=self._plan.negatives[number],
            steps=self._plan.steps,
            guidance=self._plan.guidance,
            seed=number,
            # Some samplers call the denoiser more often than steps.
            on_step=lambda step: on_step(min(step.index + 1, self._plan.steps)),
            output_type="np",
            **begin(self._artifact, self._plan.size),
        )
        if self._pipeline.encoder is not None and "vae_encoder" in self._observers:
            pixels: Array = result.images.transpose(0, 3, 1, 2) * 2 - 1
            self._pipeline.encoder(np.ascontiguousarray(pixels))
            if self._pipeline.memory == "low":
                self._pipeline.encoder.release()
        return {
            name: {source: seen for each in observers for source, seen in each.taken().items()}
            for name, observers in self._observers.items()
        }


def begin(artifact: Artifact, size: tuple[int, int] | None) -> dict[str, Any]:
    """What an inpainting model needs besides a prompt: a grey picture, its right half to be repainted."""
    if not artifact.manifest.inpainting:
        return {}
    width, height = size or artifact.manifest.latents.default_size
    mask = PIL.Image.new("L", (width, height))
    mask.paste(255, (width // 2, 0, width, height))
    return {"image": PIL.Image.new("RGB", (width, height), "grey"), "mask": mask}


class _Store:
    """What was seen, a file for each picture, in a folder for each model and plan."""

    def __init__(self, artifact: Artifact, components: list[str], chosen: Plan, device: Device) -> None:
        model = artifact.manifest.model_dump(mode="json", exclude=NOT_SEEN)
        key = json.dumps(
            [FORMAT, model, components, asdict(chosen), device.identity, device.options], sort_keys=True
        )
        home = cache_folder() / "calibration"
        _forget(home)
        self._folder = home / hashlib.sha256(key.encode()).hexdigest()[:32]
        with write_errors(self._folder):  # before any picture is made; SFUMATO_CACHE names another place
            self._folder.mkdir(parents=True, exist_ok=True)

    def has(self, number: int) -> bool:
        """Whether a picture's file is there and undamaged; it is then kept for another KEPT_DAYS."""
        with suppress(OSError, ValueError, RuntimeError, EOFError, struct.error, zipfile.BadZipFile):
            with zipfile.ZipFile(self._file(number)) as file:
                whole = file.testzip() is None
            os.utime(self._file(number))
            return whole
        return False

    def put(self, number: int, seen: Mapping[str, Seen]) -> None:
        index = [[name, *source, each.calls] for name, mine in seen.items() for source, each in mine.items()]
        arrays = {
            f"{place}.{field}": getattr(each, field)
            for place, each in enumerate(each for mine in seen.values() for each in mine.values())
            for field in FIELDS
        }
        with write_errors(self._folder):  # another run may have removed it while it was empty
            self._folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(self._file(number)) as partial, partial.open("wb") as file:
            np.savez(file, index=np.array(json.dumps(index)), **arrays)

    def together(self, count: int) -> dict[str, Seen]:
        """Of all pictures, by component and activation."""
        parts: dict[str, dict[Source, list[Statistics]]] = {}
        for number in range(count):
            for name, source, seen in self._read(number):
                parts.setdefault(name, {}).setdefault(source, []).append(seen)
        return {
            name: {source: Statistics.together(each) for source, each in mine.items()}
            for name, mine in parts.items()
        }

    def _read(self, number: int) -> Iterator[tuple[str, Source, Statistics]]:
        with np.load(self._file(number), allow_pickle=False) as arrays:
            for place, (name, operation, port, calls) in enumerate(json.loads(str(arrays["index"]))):
                fields = {field: arrays[f"{place}.{field}"] for field in FIELDS}
                yield name, (operation, port), Statistics(**fields, calls=calls)

    def _file(self, number: int) -> Path:
        return self._folder / f"{number:05d}.npz"


def _forget(home: Path) -> None:
    """Remove what no run has touched for KEPT_DAYS, and what killed ones left unfinished."""
    for file in home.glob("*/*"):
        with suppress(OSError):
            if time.time() - file.stat().st_mtime > KEPT_DAYS * 86400:
                file.unlink()
    for folder in home.glob("*"):
        with suppress(OSError):
            folder.rmdir()
