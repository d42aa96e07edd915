"""Networks: compiled for the shapes they get, kept on disk for the next start, and checked for fit."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from ..artifact import MANIFEST, REMEDY, Artifact
from ..errors import ArtifactError, InvalidRequest, SfumatoError
from ..families import Array
from ..files import hash_file
from ..graphs.gated_layers import part_gated_layers
from ..graphs.processors import fit_processor
from ..mapped import kept_small
from . import cache
from .devices import Device, core

LOADING = 2
"""Counts up when what is done to graphs before they are compiled changes."""
Shapes = Mapping[str, tuple[int, ...]]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Edit:
    """A change to a network's graph before it is compiled.

    name: what makes it another network than without; equal names must stand for equal changes.
    apply: takes the openvino.Model that was read, and changes it in place.
    """

    name: str
    apply: Callable[[Any], None]

    def after(self, first: "Edit | None") -> "Edit":
        """This change to what another one has changed already."""
        if first is None:
            return self

        def both(model: Any) -> None:
            first.apply(model)
            self.apply(model)

        return Edit(f"{first.name}; {self.name}", both)


class Network:
    """One network of an artifact, compiled for the shapes it is first given, and anew when they change.

    Static shapes compile and run faster than dynamic ones, and a pipeline seldom changes its picture size.
    """

    def __init__(self, artifact: Artifact, name: str, device: Device, edit: Edit | None = None) -> None:
        self.path = artifact.path / name / "openvino_model.xml"
        self._weights = self.path.with_suffix(".bin")
        files = artifact.manifest.files
        self._hashes = [files[f"{name}/{file.name}"].sha256 for file in (self.path, self._weights)]
        self._device = device
        self._edit = edit
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._request: Any = None

    def load(self, inputs: Shapes, outputs: Shapes) -> None:
        """Compile for inputs of these shapes, from the disk's cache where it has them.

        outputs: what the network must give for them; -1 stands for any length.
        Raises ArtifactError where the network cannot be read or is another one than the manifest says, and
        InvalidRequest where it cannot run at these shapes.
        """
        if self._request is not None and self._shapes == dict(inputs):
            return
        self._request = None
        self._check_graph()
        with self._enough_memory():
            compiled = self._compiled(inputs)
            self._check_outputs(compiled, outputs)
            self._request = compiled.create_infer_request()
        self._shapes = dict(inputs)

    def shape_of(self, output: str) -> tuple[int, ...]:
        """The shape of an output, as the network is loaded."""
        return tuple(self._request.get_tensor(output).shape)

    def release(self) -> None:
        """Let go of the compiled network and its memory; the next use compiles it anew.

        OpenVINO 2026.4 returns all of it to the system: trimming the heap (malloc_trim) freed nothing more.
        """
        self._request = None

    def __call__(self, inputs: Mapping[str, NDArray[Any]], outputs: Shapes) -> dict[str, Array]:
        """Run once; returns the named outputs as float32, each an array of its own. Shapes as for load."""
        self.load({name: array.shape for name, array in inputs.items()}, outputs)
        try:
            with self._enough_memory():
                results = self._request.infer(dict(inputs))
        except RuntimeError as error:
            raise SfumatoError(f"{self.path}: running failed ({_reason(error)})") from error
        return {name: np.asarray(results[name], np.float32) for name in outputs}

    def _check_graph(self) -> None:
        """OpenVINO may crash on a damaged graph, which is small enough to be hashed at every start."""
        try:
            digest = hash_file(self.path)
            self._weights.stat()
        except OSError as error:
            raise ArtifactError(f"{self.path}: cannot be read ({error.strerror}); {REMEDY}") from error
        if digest != self._hashes[0]:
            raise ArtifactError(f"{self.path}: damaged or changed (its SHA-256 is another); {REMEDY}")

    def _compiled(self, inputs: Shapes) -> Any:
        """Import the compiled network from the cache, or compile it and leave it there.

        The cached file has no weights: they stay mapped from the artifact. It takes a few megabytes instead
        of a second copy of the model, and starts in half the time (measured at 16 and at 445 million
        parameters).
        """
        if not self._device.cached or "EXPORT_IMPORT" not in self._device.identity:
            return self._compile(inputs)
        key = self._key(inputs)
        blob = cache.read(key)
        if blob is not None:
            try:
                return self._import(blob)
            except RuntimeError as error:
                log.info("%s: cached network not usable, compiling again (%s)", self.path, _reason(error))
        compiled = self._compile(inputs)
        try:
            stream = BytesIO()
            compiled.export_model(stream)
            cache.write(key, stream.getvalue())
        except (SfumatoError, OSError, RuntimeError) as error:
            log.info("compiled network not kept (%s)", error)
        return compiled

    def _key(self, inputs: Shapes) -> str:
        """What a compiled network depends on.

        The manifest's hash of the weights would not do, as it is not verified here: a folder that claims
        another's weights must not get at its entry.
        """
        weights = self._weights.stat()
        model = [*self._hashes, weights.st_size, weights.st_mtime_ns]
        edit = self._edit.name if self._edit else ""
        identity = [LOADING, self._device.identity, self._device.options, model, edit, sorted(inputs.items())]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]

    def _import(self, blob: NDArray[np.uint8]) -> Any:
        options = self._device.options | {"WEIGHTS_PATH": str(self._weights)}
        with kept_small([self._weights]):
            return core().import_model(openvino.Tensor(blob), self._device.name, options)

    def _compile(self, inputs: Shapes) -> Any:
        try:
            model = core().read_model(self.path)
            _take_fractions(model)
            if self._edit:
                self._edit.apply(model)
        except RuntimeError as error:
            raise ArtifactError(f"{self.path}: damaged ({_reason(error)}); {REMEDY}") from error
        self._check_inputs(model, inputs)
        try:
            model.reshape({name: list(shape) for name, shape in inputs.items()})
            part_gated_layers(model)
            if self._device.takes_fitting:
                fit_processor(model)
            with self._enough_memory(), kept_small([self._weights]):
                return core().compile_model(model, self._device.name, self._device.options)
        except RuntimeError as error:
            given = ", ".join(f"{name} {list(shape)}" for name, shape in inputs.items())
            raise InvalidRequest(
                f"{self.path.parent.name} cannot run with {given} ({_reason(error)}); choose another size"
            ) from error

    def _check_inputs(self, model: Any, inputs: Shapes) -> None:
        self._check_fit("input", model.inputs, inputs)
        for port in model.inputs:
            if port.get_names().isdisjoint(inputs):
                names = " or ".join(map(repr, sorted(port.get_names()))) or "without a name"
                raise ArtifactError(f"{self.path}: needs an input {names}, which is not known here; {REMEDY}")

    def _check_outputs(self, compiled: Any, outputs: Shapes) -> None:
        self._check_fit("output", compiled.outputs, outputs)
        if any(port.partial_shape.is_dynamic for port in compiled.outputs):
            raise ArtifactError(f"{self.path}: the shape of its outputs depends on their content; {REMEDY}")

    def _check_fit(self, kind: str, ports: Any, wanted: Shapes) -> None:
        shapes = {name: port.partial_shape for port in ports for name in port.get_names()}
        for name, shape in wanted.items():
            if name not in shapes:
                raise ArtifactError(f"{self.path}: has no {kind} {name!r}; {REMEDY}")
            if not shapes[name].compatible(openvino.PartialShape(list(shape))):
                raise ArtifactError(
                    f"{self.path}: {kind} {name!r} is {shapes[name]}, but {list(shape)} fits the other parts "
                    f"and {MANIFEST}; {REMEDY}"
                )

    @contextmanager
    def _enough_memory(self) -> Iterator[None]:
        """Raise SfumatoError where an allocation fails, which OpenVINO 2026.4 words in several ways."""
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and "alloc" not in str(error):
                raise
            name = self.path.parent.name
            raise SfumatoError(f"{name}: out of memory; choose a smaller size, or memory 'low'") from error


MakeNetwork = Callable[[Artifact, str, Device, Edit | None], Network]
"""What makes a network of an artifact, by name: `Network` itself, or something that also looks on."""


def _take_fractions(model: Any) -> None:
    """Let timesteps be fractional: a UNet's input is int64 on disk, as OpenVINO GenAI needs it."""
    for port in model.inputs:
        if "timestep" in port.get_names():
            port.get_node().set_element_type(openvino.Type.f32)
    model.validate_nodes_and_infer_types()


def _reason(error: Exception) -> str:
    """The last line that says something: OpenVINO's messages begin with its source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__
