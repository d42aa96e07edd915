"""Memory-mapped files: giving back the pages that were read, so that weights are not held twice."""

import ctypes
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

MADV_DONTNEED = 4  # Linux
INTERVAL = 0.2
SMALL = 16 * 2**20  # bytes of a file whose pages are not worth the search for them


def let_go(files: Iterable[Path]) -> None:
    """Give the pages of these files that this process has read back to the system (Linux; elsewhere nothing).

    Read-only mappings alone: their content is the file's, and read again when it is needed. Files below SMALL
    keep theirs.
    """
    if not sys.platform.startswith("linux"):
        return
    names = {os.fsencode(file.resolve()) for file in files if file.is_file() and file.stat().st_size >= SMALL}
    if not names:
        return
    for line in Path("/proc/self/maps").read_bytes().splitlines():
        place, access, _, _, _, *name = line.split(maxsplit=5)
        if name and name[0] in names and access.startswith(b"r--"):
            start, end = (int(address, 16) for address in place.split(b"-"))
            _libc().madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), MADV_DONTNEED)


@contextmanager
def kept_small(files: Iterable[Path]) -> Iterator[None]:
    """Let go of these files' pages again and again while the block runs, and at its end.

    Their mappings should outlast the block: memory that takes an ended one's place between a look at the list
    of mappings and the advice would lose its content.
    """
    chosen, done = list(files), threading.Event()

    def work() -> None:
        while not done.wait(INTERVAL):
            let_go(chosen)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        let_go(chosen)


@cache
def _libc() -> Any:
    return ctypes.CDLL(None)
