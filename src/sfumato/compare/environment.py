"""Where it was measured: processor, memory, system and packages."""

import os
import platform
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .. import __version__
from .records import Environment

PACKAGES = ("openvino", "numpy", "torch", "diffusers", "transformers")


def environment() -> Environment:
    """This machine and what is installed; imports none of the packages."""
    return Environment(
        processor=_processor(Path("/proc/cpuinfo")),
        cores=_cores(),
        memory_bytes=_memory(),
        system=platform.platform(terse=True),
        python=platform.python_version(),
        packages={"sfumato": __version__, **_versions()},
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _processor(cpuinfo: Path) -> str:
    with suppress(OSError):
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return " ".join(value.split())
    return platform.processor() or platform.machine()


def _cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> int:
    """The machine's, 0 where the system does not say."""
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return 0
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
