"""From command to picture, or to the first step: wall time of `sfumato generate`, in fresh processes.

    python benchmarks/start.py                            # mini, its default steps
    python benchmarks/start.py --steps 4 --runs 9         # also peak memory and sameness of the pictures
    python benchmarks/start.py --model ./sd15-int8 --first-step --cold-files

The first run starts with an empty cache of compiled networks; the others find it filled. With --first-step a
run ends when the command says that its first step is done. processor_seconds: of all threads together; where
it is far above the wall time's share of the processors, the machine was not quiet. --cold-files lets the
system forget the model's files before each run, so that they are read from the disk (Linux).
"""

import argparse
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

from sfumato.artifact import find_model

FIRST_STEP = "step 1/"
Row = dict[str, Any]


def forget(folder: Path) -> None:
    """Have the system drop what it keeps in memory of a folder's files."""
    for path in (path for path in folder.rglob("*") if path.is_file()):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def command(options: argparse.Namespace, picture: Path) -> list[str]:
    given = [options.prompt, "-m", options.model, "--seed", "7", "--json", "-o", str(picture)]
    for name in ("steps", "size", "threads"):
        if (value := getattr(options, name)) is not None:
            given += [f"--{name}", str(value)]
    return [sys.executable, "-m", "sfumato", "generate", *given]


def to_picture(arguments: list[str], environment: dict[str, str], picture: Path) -> Row:
    """One process, from start to exit: seconds, peak bytes and the picture's SHA-256."""
    began = time.perf_counter()
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "peak_memory_bytes": json.loads(done.stdout)["peak_memory_bytes"],
        "sha256": hashlib.sha256(picture.read_bytes()).hexdigest(),
    }


def to_first_step(arguments: list[str], environment: dict[str, str]) -> Row:
    """One process, from its start to its first step's end, where it is stopped; times in seconds."""
    began, used = time.perf_counter(), processor_seconds()
    process = subprocess.Popen(
        arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        said = until_first_step(process.stderr)
        seconds = time.perf_counter() - began
        if said is not None:
            sys.exit(f"the command ended before its first step: {said}")
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    return {"seconds": seconds, "processor_seconds": processor_seconds() - used}


def processor_seconds() -> float:
    """Of all processes that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def until_first_step(lines: IO[str]) -> str | None:
    """Read up to the line that tells of the first step; where there is none, return what was said."""
    said = []
    for line in lines:
        if line.startswith(FIRST_STEP):
            return None
        said.append(line.strip())
    return " ".join(said) or "it said nothing"


def measured(options: argparse.Namespace) -> list[Row]:
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        environment = os.environ | {"SFUMATO_CACHE": str(Path(scratch) / "cache")}
        for index in range(options.runs):
            if options.cold_files:
                forget(find_model(options.model))
            picture = Path(scratch) / f"{index}.png"
            arguments = command(options, picture)
            rows.append(
                to_first_step(arguments, environment)
                if options.first_step
                else to_picture(arguments, environment, picture)
            )
    return rows


def report_of(options: argparse.Namespace, rows: list[Row]) -> Row:
    """The first run apart from the others."""
    report: Row = {
        "model": options.model,
        "until": "first step" if options.first_step else "picture",
        "cold_files": options.cold_files,
        "processors": os.cpu_count(),
    }
    for name in ("seconds", "processor_seconds"):
        if name in rows[0]:
            later = [row[name] for row in rows[1:]]
            report[f"first_{name}"] = round(rows[0][name], 3)
            report[f"later_{name}_median"] = round(statistics.median(later), 3)
            report[f"later_{name}"] = [round(value, 3) for value in later]
    if not options.first_step:
        report["peak_memory_bytes"] = max(row["peak_memory_bytes"] for row in rows)
        report["same_bytes"] = len({row["sha256"] for row in rows}) == 1
    return report


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--prompt", default="noto red apple")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--size", help="WxH; the model's own by default")
    parser.add_argument("--threads", type=int, help="OpenVINO's own choice by default")
    parser.add_argument("--runs", type=int, default=6, help="at least 2")
    parser.add_argument("--first-step", action="store_true", help="only up to the first step's end")
    parser.add_argument("--cold-files", action="store_true", help="read the model from the disk (Linux)")
    options = parser.parse_args()
    if options.runs < 2:
        parser.error("--runs: at least 2, one with an empty cache and one with a filled one")
    return options


def main() -> None:
    options = parse()
    print(json.dumps(report_of(options, measured(options)), indent=2))


if __name__ == "__main__":
    main()
