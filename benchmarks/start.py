"""From command to picture: wall time, peak memory and sameness of `sfumato generate`, in fresh processes.

    python benchmarks/start.py                      # mini, its default steps
    python benchmarks/start.py --steps 4 --runs 9

The first run starts with an empty cache of compiled networks; the others find it filled.
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def run_once(folder: Path, index: int, options: argparse.Namespace) -> dict[str, float | str]:
    """One process, from start to exit: seconds, peak bytes and the picture's SHA-256."""
    command = [
        sys.executable,
        "-m",
        "sfumato",
        "generate",
        options.prompt,
        "-m",
        options.model,
        "--seed",
        "7",
    ]
    if options.steps:
        command += ["--steps", str(options.steps)]
    environment = os.environ | {"SFUMATO_CACHE": str(folder / "cache")}
    picture = folder / f"{index}.png"
    began = time.perf_counter()
    done = subprocess.run(
        [*command, "--json", "-o", str(picture)], env=environment, capture_output=True, text=True, check=True
    )
    seconds = time.perf_counter() - began
    report = json.loads(done.stdout)
    return {
        "seconds": seconds,
        "peak_memory_bytes": report["peak_memory_bytes"],
        "sha256": hashlib.sha256(picture.read_bytes()).hexdigest(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--prompt", default="noto red apple")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--runs", type=int, default=6)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        runs = [run_once(Path(scratch), index, options) for index in range(options.runs)]
    first, later = runs[0], runs[1:]
    report = {
        "model": options.model,
        "first_seconds": round(first["seconds"], 3),
        "later_seconds_median": round(statistics.median(run["seconds"] for run in later), 3),
        "later_seconds": [round(run["seconds"], 3) for run in later],
        "peak_memory_bytes": max(run["peak_memory_bytes"] for run in runs),
        "same_bytes": len({run["sha256"] for run in runs}) == 1,
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
