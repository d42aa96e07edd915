"""How much memory there is, and what a pipeline keeps in it."""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Literal, cast

from ..artifact import Artifact
from ..errors import InvalidRequest
from ..families import TEXT_KINDS

Kept = Literal["low", "high"]
"""low: one network at a time. high: all networks, from one call to the next."""
MODES = ("auto", "low", "high")
PER_WEIGHT = 2
"""Bytes of memory for a byte of weights on disk: OpenVINO 2026.4 maps the file and arranges a copy of it.

The copy is as large as the file where 16-bit weights are computed in 16 bits, and twice as large in f32, when
the mapped pages can make room for it (measured with 400 MB of weights; compiling takes no more than running).
"""
PER_PIXEL = 4000
"""Bytes of activations for each pixel: decoding takes 1.5 kB in bf16 and 3 kB in f32 (SD's VAE, measured)."""

log = logging.getLogger(__name__)


def choose(wanted: str, artifacts: Sequence[Artifact], available: int | None) -> Kept:
    """The mode itself, or for "auto" the one that `available` bytes allow: high where they are unknown.

    High needs PER_WEIGHT times the weights of all artifacts, and PER_PIXEL for each pixel of the first one's
    default size.
    Raises InvalidRequest for a mode that is none.
    """
    if wanted not in MODES:
        raise InvalidRequest(f"memory {wanted!r}: one of {', '.join(MODES)}")
    if wanted != "auto":
        return cast(Kept, wanted)
    width, height = artifacts[0].manifest.latents.default_size
    needed = PER_WEIGHT * sum(map(weights, artifacts)) + PER_PIXEL * width * height
    chosen: Kept = "low" if available is not None and available < needed else "high"
    found = "an unknown amount" if available is None else f"{available / 1e9:.1f} GB"
    log.info("memory %s: keeping all networks takes about %.1f GB of %s", chosen, needed / 1e9, found)
    return chosen


def weights(artifact: Artifact) -> int:
    """Bytes of the weights that a pipeline may read."""
    family, manifest = artifact.family, artifact.manifest
    used = [
        name
        for name, info in manifest.components.items()
        if info.kind in TEXT_KINDS or name in (family.denoiser, "vae_encoder", "vae_decoder")
    ]
    return sum(manifest.files[f"{name}/openvino_model.bin"].bytes for name in used)


def available(root: Path = Path("/")) -> int | None:
    """Bytes that this process can still take without swapping, None where the system does not say.

    Linux: the least of MemAvailable and of what each enclosing control group leaves, where files in the page
    cache count as free. Elsewhere half of the machine's memory. root: where `proc` and `sys` are.
    """
    figures = [*_machine(root / "proc/meminfo"), *_groups(root)]
    return min(figures) if figures else _half()


def _machine(meminfo: Path) -> Iterator[int]:
    found = _table(meminfo).get("MemAvailable:")
    if found is not None:
        yield found * 1024


def _groups(root: Path) -> Iterator[int]:
    """What is left to each control group around this process, versions 1 and 2."""
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            group = PurePosixPath(path.lstrip("/"))
            if controllers == "":
                names, base = ("memory.max", "memory.current", "inactive_file"), "sys/fs/cgroup"
            elif "memory" in controllers.split(","):
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
                base = "sys/fs/cgroup/memory"
            else:
                continue
            # Inside a container the path may be the host's: then only the root of the mount is there.
            for level in (group, *group.parents):
                yield from _left(root / base / level, *names)


def _left(folder: Path, limit: str, usage: str, cached: str) -> Iterator[int]:
    with suppress(OSError, ValueError):  # the group is not mounted here, or its limit is "max"
        most, used = (int((folder / name).read_text()) for name in (limit, usage))
        yield max(0, most - used + _table(folder / "memory.stat").get(cached, 0))


def _table(file: Path) -> dict[str, int]:
    """Lines of a name and a whole number; nothing where there is no such file."""
    with suppress(OSError):
        rows = (line.split() for line in file.read_text().splitlines())
        return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}
    return {}


def _half() -> int | None:
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
