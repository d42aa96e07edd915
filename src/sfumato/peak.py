"""How much memory this process has taken."""

import sys
from contextlib import suppress
from pathlib import Path


def peak_memory() -> int:
    """Largest resident memory of this process in bytes, pages of mapped files among it."""
    # Linux alone has this file; its ru_maxrss counts what the starting process had, too.
    with suppress(OSError, StopIteration):
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    import resource  # POSIX only

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, others kilobytes
