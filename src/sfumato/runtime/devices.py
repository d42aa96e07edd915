"""Networks on OpenVINO devices: compiled for the shapes they get, and kept on disk for the next start."""

import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import platformdirs
from numpy.typing import NDArray

from .. import __version__
from ..artifact import Artifact
from ..errors import ArtifactError, InvalidRequest, SfumatoError
from ..files import atomic_file

Shapes = Mapping[str, tuple[int, ...]]
PRECISIONS = ("f32", "f16", "bf16")
log = logging.getLogger(__name__)


@cache
def _core() -> Any:
    return openvino.Core()


def cache_folder() -> Path:
    """Where compiled networks are kept: SFUMATO_CACHE, or the user's cache folder."""
    chosen = os.environ.get("SFUMATO_CACHE")
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("sfumato")


@dataclass(frozen=True)
class Device:
    """An OpenVINO device and how to use it.

    name: "CPU", "GPU", "GPU.1", "NPU", "AUTO", ...
    precision: "f32", "f16" or "bf16" arithmetic; None leaves it to the device (bf16 on many processors).
    threads: processor threads to use; None leaves it to OpenVINO.
    """

    name: str = "CPU"
    precision: str | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        root = re.split(r"[.:]", self.name)[0]
        available = _core().available_devices
        if root != "AUTO" and root not in {re.split(r"\.", device)[0] for device in available}:
            raise InvalidRequest(
                f"device {self.name!r}: not found here; available are {', '.join(available)}, AUTO"
            )
        if self.precision not in (None, *PRECISIONS):
            raise InvalidRequest(f"precision {self.precision!r}: one of {', '.join(PRECISIONS)}, or none")
        if self.threads is not None and self.threads < 1:
            raise InvalidRequest(f"threads {self.threads}: at least 1")

    @cached_property
    def options(self) -> dict[str, Any]:
        """Compilation properties, as OpenVINO names them."""
        options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "CACHE_MODE": "OPTIMIZE_SIZE"}
        if self.precision:
            options["INFERENCE_PRECISION_HINT"] = self.precision
        if self.threads:
            options["INFERENCE_NUM_THREADS"] = self.threads
        return options

    @cached_property
    def identity(self) -> list[str]:
        """What compiled networks depend on besides the network: libraries, device and its abilities."""
        abilities = _core().get_property(self.name, "OPTIMIZATION_CAPABILITIES")
        full_name = _core().get_property(self.name, "FULL_DEVICE_NAME")
        return [__version__, openvino.__version__, self.name, full_name, *sorted(abilities)]


class Network:
    """One network of an artifact, compiled for the shapes it is first given, and anew when they change.

    Static shapes compile and run faster than dynamic ones, and a pipeline seldom changes its picture size.
    """

    def __init__(self, artifact: Artifact, name: str, device: Device) -> None:
        self.path = artifact.path / name / "openvino_model.xml"
        self._hashes = [
            artifact.manifest.files[f"{name}/openvino_model.{suffix}"].sha256 for suffix in ("xml", "bin")
        ]
        self._device = device
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._request: Any = None

    def load(self, shapes: Shapes) -> None:
        """Compile for inputs of these shapes, from the disk's cache where it has them.

        Raises ArtifactError where OpenVINO cannot read the network, InvalidRequest where it cannot run it at
        these shapes.
        """
        if self._request is not None and self._shapes == dict(shapes):
            return
        self._request = None
        self._request = self._compiled(shapes).create_infer_request()
        self._shapes = dict(shapes)

    def __call__(self, inputs: Mapping[str, np.ndarray[Any, Any]]) -> Mapping[Any, Any]:
        """Run once; returns outputs by name or position, each an array of its own."""
        self.load({name: array.shape for name, array in inputs.items()})
        try:
            outputs: Mapping[Any, Any] = self._request.infer(dict(inputs))
        except RuntimeError as error:
            raise SfumatoError(f"{self.path}: running failed ({_reason(error)})") from error
        return outputs

    def _compiled(self, shapes: Shapes) -> Any:
        """Import the compiled network from the cache, or compile it and leave it there.

        The cached file has no weights: they stay mapped from the artifact. It takes a few megabytes instead
        of a second copy of the model, and starts in half the time (measured at 16 and at 445 million
        parameters), with a peak of memory no higher than without.
        """
        if "EXPORT_IMPORT" not in self._device.identity:
            return self._compile(shapes)
        identity = [*self._device.identity, self._device.options, self._hashes, sorted(shapes.items())]
        key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
        cached = cache_folder() / f"{key}.blob"
        blob = _read_blob(cached)
        if blob is not None:
            try:
                return self._import(blob)
            except RuntimeError as error:
                log.info("%s: not usable, compiling again (%s)", cached, _reason(error))
        compiled = self._compile(shapes)
        try:
            _write_blob(cached, compiled)
        except (SfumatoError, OSError, RuntimeError) as error:
            log.info("compiled network not kept (%s)", error)
        return compiled

    def _import(self, blob: NDArray[np.uint8]) -> Any:
        options = self._device.options | {"WEIGHTS_PATH": str(self.path.with_suffix(".bin"))}
        return _core().import_model(openvino.Tensor(blob), self._device.name, options)

    def _compile(self, shapes: Shapes) -> Any:
        try:
            model = _core().read_model(self.path)
        except RuntimeError as error:
            raise ArtifactError(
                f"{self.path}: damaged ({_reason(error)}); convert the checkpoint again"
            ) from error
        _take_fractions(model)
        try:
            model.reshape({name: list(shape) for name, shape in shapes.items()})
            return _core().compile_model(model, self._device.name, self._device.options)
        except RuntimeError as error:
            given = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
            raise InvalidRequest(
                f"{self.path.parent.name} cannot run with {given} ({_reason(error)}); choose another size"
            ) from error


def _take_fractions(model: Any) -> None:
    """Let timesteps be fractional: a UNet's input is int64 on disk, as OpenVINO GenAI needs it."""
    for port in model.inputs:
        if port.any_name == "timestep":
            port.get_node().set_element_type(openvino.Type.f32)
    model.validate_nodes_and_infer_types()


def _read_blob(path: Path) -> NDArray[np.uint8] | None:
    """A cached network, or None where there is none or it is damaged: OpenVINO may crash on a damaged one."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, blob = content[:32], content[32:]
    return np.frombuffer(blob, np.uint8) if hashlib.sha256(blob).digest() == digest else None


def _write_blob(path: Path, compiled: Any) -> None:
    stream = BytesIO()
    compiled.export_model(stream)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as partial:
        partial.write_bytes(hashlib.sha256(stream.getbuffer()).digest() + stream.getvalue())


def _reason(error: Exception) -> str:
    """The last line that says something: OpenVINO's messages begin with its source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__
