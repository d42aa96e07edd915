"""Peak memory and time of a command, measured from outside.

    python benchmarks/memory.py sfumato convert checkpoints/sd15 models/sd15 --weights int8

Samples the resident memory of the command and all its children every 20 ms and prints the largest sum, the
share of it that is no page of a file (which the system can take back at any time), and the wall time.
"""

import subprocess
import sys
import time

import psutil

INTERVAL = 0.02


def resident(process: psutil.Process) -> tuple[int, int]:
    """Bytes that a process and its children hold, and how many of them are no pages of files."""
    total = private = 0
    try:
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0, 0
    for each in family:
        try:
            memory = each.memory_info()
        except psutil.NoSuchProcess:
            continue
        total += memory.rss
        private += memory.rss - memory.shared
    return total, private


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    started = time.monotonic()
    running = subprocess.Popen(sys.argv[1:])
    process, peak = psutil.Process(running.pid), (0, 0)
    while running.poll() is None:
        peak = max(peak, resident(process))
        time.sleep(INTERVAL)
    seconds = time.monotonic() - started
    print(f"peak {peak[0] / 1e9:.2f} GB ({peak[1] / 1e9:.2f} GB private), {seconds:.1f} s", file=sys.stderr)
    sys.exit(running.returncode)


if __name__ == "__main__":
    main()
