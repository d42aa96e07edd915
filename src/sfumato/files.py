"""Writing files and folders so that what exists is complete, and hashing what was written."""

import errno
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import InvalidRequest, SfumatoError

ABANDONED = 24 * 3600
"""Age in seconds from which an unfinished file is no other process's work."""
NO_SPACE = "no space left on the device; free some or write elsewhere"
_REFUSALS = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
)
_FULL = ("iostream error", "unexpected pos", "PytorchStreamWriter failed")
"""What RuntimeErrors of OpenVINO 2026.4 and PyTorch 2.13 say when the disk is full, and no more."""
_RUST = re.compile(r"\(os error (\d+)\)")
"""What safetensors 0.8 and tokenizers 0.23 tell of the operating system's errors; theirs are no OSErrors."""


def expanded(path: str | Path) -> Path:
    """A path with `~` and `~name` as that user's home; as it is where there is no such user or home."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def write_errors(target: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write `target` into one-line errors."""
    try:
        yield
    except SfumatoError:
        raise
    except Exception as error:
        code = _errno(error)
        if code is None and not isinstance(error, OSError):
            raise
        if code in (errno.ENOSPC, errno.EDQUOT):
            raise SfumatoError(f"{target}: {NO_SPACE}") from error
        if code is not None and code in _REFUSALS:
            reason = os.strerror(code).lower()
            raise InvalidRequest(f"{target}: cannot be written ({reason}); choose another place") from error
        raise SfumatoError(f"{target}: writing failed ({error})") from error


def _errno(error: Exception) -> int | None:
    """The operating system's number of an error, whichever library raised it; None where it has none."""
    if isinstance(error, OSError):
        return error.errno
    if isinstance(error, RuntimeError) and any(words in str(error) for words in _FULL):
        return errno.ENOSPC
    told = _RUST.search(str(error))
    return int(told[1]) if told else None


def human_bytes(count: float) -> str:
    """`1.5 MB`: decimal units, as disks and downloads are sold."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def check_new_folder(target: Path) -> None:
    """Raise InvalidRequest unless a finished folder could take the place of `target`: nothing, or empty."""
    with write_errors(target):
        free = not target.exists() or (target.is_dir() and not any(target.iterdir()))
    if not free:
        raise InvalidRequest(f"{target}: exists already; remove it or choose another folder")
    if target.is_mount():
        raise InvalidRequest(f"{target}: is a mount point, which cannot be replaced; choose a folder inside")


def check_space(target: Path, needed: int) -> None:
    """Raise SfumatoError where less than `needed` bytes are free for a `target` that may not exist yet."""
    place = next(folder for folder in (target, *target.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise SfumatoError(
            f"{target}: at least {human_bytes(needed)} are needed and {human_bytes(free)} are free; "
            "free some space or write elsewhere"
        )


@contextmanager
def folder_made(folder: Path) -> Iterator[None]:
    """A folder that exists, with its parents; what was made here goes again if it is empty at the end."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for place in missing:
            with suppress(OSError):
                place.rmdir()  # refuses what is not empty


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """A temporary sibling to write to, renamed to `target` on success and removed on failure."""
    with write_errors(target):
        start = target.name.encode()[:128].decode(errors="ignore")  # names end at 255 bytes
        handle, name = tempfile.mkstemp(prefix=f".{start}.partial-", dir=target.parent)
        os.close(handle)
        partial = Path(name)
        try:
            yield partial
            partial.chmod(0o666 & ~_umask())
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)


def remove_abandoned(folder: Path, names: str) -> None:
    """Remove what killed processes left of `atomic_file`s in a folder, by the pattern of their names.

    What is younger than a day stays: another process may be writing it. So does what cannot be removed.
    """
    for partial in folder.glob(f".{names}.partial-*"):
        with suppress(OSError):
            if time.time() - partial.stat().st_mtime > ABANDONED:
                partial.unlink()


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A temporary sibling folder to fill, renamed to `target` on success and removed on failure.

    `target` must not exist, or be an empty folder: InvalidRequest otherwise, before any work is done.
    What killed runs left beside `target` is removed first.
    """
    check_new_folder(target)
    target = target.resolve()  # "." and links have no sibling of their own
    with write_errors(target), folder_made(target.parent):
        prefix = f".{target.name}.partial-"
        for leftover in target.parent.glob(f"{prefix}*"):
            with _lock(leftover) as free:
                if free:
                    shutil.rmtree(leftover)
        partial = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
        try:
            with _lock(partial):
                yield partial
                partial.chmod(0o777 & ~_umask())
                partial.replace(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """Hold an advisory lock on a folder, which ends with the process; false if another process has it."""
    import fcntl  # POSIX only: imported here so that generating works without it

    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(handle)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
