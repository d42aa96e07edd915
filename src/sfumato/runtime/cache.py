"""Compiled networks on disk: found by a key, checked by hash, the longest unused removed."""

import hashlib
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import platformdirs
from numpy.typing import NDArray

from ..files import atomic_file, expanded, remove_abandoned

LIMIT = 2 * 10**9
"""Bytes that the entries may take together."""
NAME = "[0-9a-f]" * 32 + ".blob"
DIGEST = hashlib.sha256().digest_size


def cache_folder() -> Path:
    """Where compiled networks are kept: SFUMATO_CACHE, or the user's cache folder."""
    chosen = os.environ.get("SFUMATO_CACHE")
    return expanded(chosen) if chosen else platformdirs.user_cache_path("sfumato")


def read(key: str) -> NDArray[np.uint8] | None:
    """The entry of that key, or None where there is none or it is damaged: OpenVINO may crash on those."""
    path = _path(key)
    try:
        content = path.read_bytes()
    except OSError:
        return None
    blob = memoryview(content)[DIGEST:]
    if hashlib.sha256(blob).digest() != content[:DIGEST]:
        return None
    with suppress(OSError):
        os.utime(path)
    return np.frombuffer(blob, np.uint8)


def write(key: str, blob: bytes) -> None:
    """Add or replace an entry, whole or not at all, and make room. Raises SfumatoError or OSError."""
    path = _path(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as partial:
        partial.write_bytes(hashlib.sha256(blob).digest() + blob)
    _prune(path.parent)


def _path(key: str) -> Path:
    return cache_folder() / f"{key}.blob"


def _prune(folder: Path) -> None:
    remove_abandoned(folder, NAME)
    total = 0
    entries = [(path.stat(), path) for path in folder.glob(NAME)]
    for stat, path in sorted(entries, key=lambda entry: entry[0].st_mtime, reverse=True):
        total += stat.st_size
        if total > LIMIT:
            path.unlink(missing_ok=True)
