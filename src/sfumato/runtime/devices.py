"""OpenVINO devices, how to compile for them, and which network runs on which."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any

import openvino

from .. import __version__
from ..errors import InvalidRequest

PRECISIONS = ("f32", "f16", "bf16")
VIRTUAL = ("AUTO", "HETERO", "MULTI")
CORES = {"performance": "PCORE_ONLY", "efficient": "ECORE_ONLY"}
DRIVERS = {
    "GPU": "; a GPU needs its maker's driver with OpenCL (Intel's compute runtime)",
    "NPU": "; an NPU needs Intel's NPU driver",
}


@cache
def core() -> Any:
    """OpenVINO's one `Core` of this process."""
    return openvino.Core()


@dataclass(frozen=True)
class Device:
    """An OpenVINO device and how to use it.

    name: "CPU", "GPU", "GPU.1", "NPU"; "AUTO", the best there is, or of those listed ("AUTO:GPU,CPU") or but
        for some ("AUTO:-GPU"); "HETERO:GPU,CPU", each operation on the first that knows it; "MULTI:GPU,CPU".
    precision: "f32", "f16" or "bf16" arithmetic; None leaves it to the device (bf16 on many processors).
    threads: processor threads to use; None leaves it to OpenVINO.
    cached: keep compiled networks on the disk. Writing or reading them costs a tenth more memory (OpenVINO
        2026.4, SD 1.5's UNet).
    pinning: whether threads stay on their processor core; None leaves it to OpenVINO.
    cores: "performance" or "efficient" cores alone, on processors that have both.

    threads, pinning and cores hold for the CPU's part, and for no other device.
    """

    name: str = "CPU"
    precision: str | None = None
    threads: int | None = None
    cached: bool = True
    pinning: bool | None = None
    cores: str | None = None

    def __post_init__(self) -> None:
        self._check_name(core().available_devices)
        if self.precision not in (None, *PRECISIONS):
            raise InvalidRequest(f"precision {self.precision!r}: one of {', '.join(PRECISIONS)}, or none")
        if self.threads is not None and self.threads < 1:
            raise InvalidRequest(f"threads {self.threads}: at least 1")
        if self.cores not in (None, *CORES):
            raise InvalidRequest(f"cores {self.cores!r}: one of {', '.join(CORES)}, or none")

    @cached_property
    def members(self) -> tuple[str, ...]:
        """The devices that may do the work, such as GPU and CPU of "HETERO:GPU,CPU"."""
        root, _, rest = self.name.partition(":")
        listed = rest.split(",") if rest else []
        if root not in VIRTUAL:
            return (self.name,)
        wanted = [name for name in listed if not name.startswith("-")]
        excluded = {name.removeprefix("-") for name in listed}
        return tuple(
            wanted or [name for name in core().available_devices if not {name, _kind(name)} & excluded]
        )

    @cached_property
    def options(self) -> dict[str, Any]:
        """Compilation properties, as OpenVINO names them."""
        options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "CACHE_MODE": "OPTIMIZE_SIZE"}
        if self.precision:
            options["INFERENCE_PRECISION_HINT"] = self.precision
        if self.name.startswith("AUTO"):
            # Otherwise AUTO begins on the CPU until another device is ready: twice the memory, and a picture
            # that depends on how long that takes.
            options["ENABLE_STARTUP_FALLBACK"] = False
        if self.for_the_cpu:
            options["DEVICE_PROPERTIES"] = {"CPU": self.for_the_cpu}
        return options

    @cached_property
    def for_the_cpu(self) -> dict[str, Any]:
        """The properties that only the CPU has, as OpenVINO names them."""
        options: dict[str, Any] = {}
        if self.threads is not None:
            options["INFERENCE_NUM_THREADS"] = self.threads
        if self.pinning is not None:
            options["ENABLE_CPU_PINNING"] = self.pinning
        if self.cores is not None:
            options["SCHEDULING_CORE_TYPE"] = CORES[self.cores]
        return options

    @cached_property
    def identity(self) -> list[str]:
        """What compiled networks depend on besides the network: libraries, device and its abilities.

        A device made of others has no abilities here: what it compiles is not kept.
        """
        identity = [__version__, openvino.__version__, self.name]
        if self.members != (self.name,):
            return identity
        return [*identity, core().get_property(self.name, "FULL_DEVICE_NAME"), *sorted(self._abilities)]

    @cached_property
    def takes_fitting(self) -> bool:
        """Whether `graphs.processors` is for it: measured on processors that have bf16 arithmetic."""
        return self.name == "CPU" and "BF16" in self._abilities

    @cached_property
    def _abilities(self) -> list[str]:
        abilities: list[str] = core().get_property(self.name, "OPTIMIZATION_CAPABILITIES")
        return abilities

    def _check_name(self, available: Sequence[str]) -> None:
        """Raise InvalidRequest, with what there is and what to do, where OpenVINO would fail at compiling."""
        there = f"available are {', '.join(available)}, AUTO"
        if self.name in ("HETERO", "MULTI"):
            raise InvalidRequest(f"device {self.name!r}: say of which, such as {self.name}:GPU,CPU; {there}")
        if not self.members:
            raise InvalidRequest(f"device {self.name!r}: leaves none; {there}")
        for member in self.members:
            if not _found(member, available):
                which = "" if member == self.name else f"{member!r} is "
                raise InvalidRequest(
                    f"device {self.name!r}: {which}not found here; {there}{DRIVERS.get(_kind(member), '')}"
                )


def _kind(name: str) -> str:
    """GPU, of GPU.1."""
    return name.partition(".")[0]


def _found(name: str, available: Sequence[str]) -> bool:
    """Whether the device is here: the first GPU is GPU as well as GPU.0, and only one of them is listed."""
    first = name in (kind := _kind(name), f"{kind}.0") and kind != "CPU"
    return name in available or (first and kind in map(_kind, available))


@dataclass(frozen=True)
class Devices:
    """Which device runs which network: `default`, but for the components named in `others`."""

    default: Device
    others: Mapping[str, Device] = field(default_factory=dict)

    @classmethod
    def parse(cls, given: str | Sequence[str], components: Collection[str], like: Device) -> "Devices":
        """Read "NAME", for all networks, and "COMPONENT=NAME", for one: a text, or several.

        components: those of the model. like: the device for all where none is given, and what else holds for
        each. Names may be in lower case.

        Raises InvalidRequest for a component that the model has not, one that is given twice, a device that
        is not here, and settings of the CPU where it takes no part.
        """
        chosen: dict[str, Device] = {}
        for text in [given] if isinstance(given, str) else given:
            component, _, name = text.rpartition("=")
            if component and component not in components:
                there = ", ".join(components)
                raise InvalidRequest(f"device {text!r}: the model has no {component!r}; it has {there}")
            if component in chosen:
                place = component or "all networks"
                raise InvalidRequest(
                    f"device {text!r}: {place} on {chosen[component].name} already; give one"
                )
            chosen[component] = replace(like, name=name.upper())
        devices = cls(chosen.pop("", like), chosen)
        devices._check_for_the_cpu()
        return devices

    def of(self, component: str) -> Device:
        """The device of a network, by its component's name."""
        return self.others.get(component, self.default)

    def _check_for_the_cpu(self) -> None:
        asked = [name for name in ("threads", "pinning", "cores") if getattr(self.default, name) is not None]
        used = [self.default, *self.others.values()]
        if asked and not any("CPU" in device.members for device in used):
            names = ", ".join(device.name for device in used)
            raise InvalidRequest(f"{', '.join(asked)}: for the CPU alone, which takes no part in {names}")
