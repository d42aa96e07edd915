"""OpenVINO devices and how to compile for them."""

import re
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import openvino

from .. import __version__
from ..errors import InvalidRequest

PRECISIONS = ("f32", "f16", "bf16")


@cache
def core() -> Any:
    """OpenVINO's one `Core` of this process."""
    return openvino.Core()


@dataclass(frozen=True)
class Device:
    """An OpenVINO device and how to use it.

    name: "CPU", "GPU", "GPU.1", "NPU", "AUTO", ...
    precision: "f32", "f16" or "bf16" arithmetic; None leaves it to the device (bf16 on many processors).
    threads: processor threads to use; None leaves it to OpenVINO.
    cached: keep compiled networks on the disk. Writing or reading them costs a tenth more memory (OpenVINO
        2026.4, SD 1.5's UNet).
    """

    name: str = "CPU"
    precision: str | None = None
    threads: int | None = None
    cached: bool = True

    def __post_init__(self) -> None:
        root = re.split(r"[.:]", self.name)[0]
        available = core().available_devices
        if root != "AUTO" and root not in {device.split(".")[0] for device in available}:
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
        abilities = core().get_property(self.name, "OPTIMIZATION_CAPABILITIES")
        full_name = core().get_property(self.name, "FULL_DEVICE_NAME")
        return [__version__, openvino.__version__, self.name, full_name, *sorted(abilities)]
