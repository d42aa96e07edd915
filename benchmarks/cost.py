"""What more work costs: time and peak memory by steps, size, number of pictures and threads.

    python benchmarks/cost.py mini --out cost-mini                      # all four axes
    python benchmarks/cost.py ./sd15-int8 --out cost-sd15 --axis size=256,512,768 --steps 2
    python benchmarks/cost.py ./sd15-int8 --out cost-sd15 --axis threads --size 512 --steps 2 --runs 5

Along an axis all else stays at --steps, --size, --count and --threads. Every run is a `sfumato generate` in a
fresh process. A point's first run starts without compiled networks and is told apart; the others find them,
and their medians count. Writes cost.json, cost.md and cost-AXIS.svg; what the folder already has of the same
model and settings is kept, so that axes and values can be measured in parts.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from sfumato.compare.plots import Axis
from sfumato.files import atomic_file

VALUES = {
    "steps": (1, 2, 4, 8, 16, 28),
    "size": (256, 384, 512, 768, 1024, 1536),
    "count": (1, 2, 4, 8),
    "threads": (1, 2),
}
UNITS = {"steps": "steps", "size": "pixels a side", "count": "pictures", "threads": "threads"}
SECONDS = ("load", "encode", "denoise", "decode", "total")
WIDTH, PANEL, LEFT, TOP = 440, 170, 60, 26
STYLE = (
    "text{font:12px sans-serif;fill:#555}.name{fill:#111;font-weight:600}.grid{stroke:#ddd}"
    "polyline{fill:none;stroke:#2a6fb0;stroke-width:2}circle{fill:#2a6fb0}rect{fill:#fff}"
)
Row = dict[str, Any]


def arguments(options: argparse.Namespace, axis: str, value: int, folder: Path) -> list[str]:
    """The command of one point."""
    point = {name: getattr(options, name) for name in VALUES} | {axis: value}
    command = [sys.executable, "-m", "sfumato", "generate", options.prompt, "-m", options.model]
    command += ["--seed", "7", "--json", "-q", "-o", f"{folder}/"]
    if point["size"]:
        point["size"] = f"{point['size']}x{point['size']}"
    return command + [text for name, given in point.items() if given for text in (f"--{name}", str(given))]


def run(command: list[str], cache: Path) -> Row:
    """What one process reports; "error" alone where it refuses or fails."""
    environment = os.environ | {"SFUMATO_CACHE": str(cache)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["it said nothing"])[-1]}
    report: Row = json.loads(done.stdout)
    return report


def point(options: argparse.Namespace, axis: str, value: int) -> Row:
    """One value of an axis: medians of seconds by stage, and the largest peak of memory."""
    with tempfile.TemporaryDirectory() as scratch:
        command = arguments(options, axis, value, Path(scratch) / "pictures")
        runs = [run(command, Path(scratch) / "cache") for _ in range(options.runs + 1)]
    row: Row = {"axis": axis, "value": value}
    errors = [each["error"] for each in runs if "error" in each]
    if errors:
        return row | {"error": errors[0]}
    first, later = runs[0], runs[1:]
    return row | {
        "seconds": {
            stage: statistics.median(each["seconds"].get(stage, 0.0) for each in later) for stage in SECONDS
        },
        "totals": [each["seconds"]["total"] for each in later],
        "peak_bytes": max(each["peak_memory_bytes"] for each in later),
        "first": {"total": first["seconds"]["total"], "peak_bytes": first["peak_memory_bytes"]},
    }


def measured(options: argparse.Namespace) -> Iterator[Row]:
    for axis, values in options.axis:
        for value in values:
            row = point(options, axis, value)
            said = row.get("error") or f"{row['seconds']['total']:.2f} s, {row['peak_bytes'] / 1e6:.0f} MB"
            print(f"{axis} {value}: {said}", file=sys.stderr, flush=True)
            yield row


def settings(options: argparse.Namespace) -> Row:
    """What rows of one file have in common."""
    names = ("model", "prompt", "runs", *VALUES)
    return {name: getattr(options, name) for name in names} | {"processors": os.cpu_count()}


def together(kept: list[Row], new: list[Row]) -> list[Row]:
    """All rows, the newest of each point, in the order of axes and values."""
    rows = {(row["axis"], row["value"]): row for row in [*kept, *new]}
    order = list(VALUES)
    return [rows[key] for key in sorted(rows, key=lambda key: (order.index(key[0]), key[1]))]


def table(rows: list[Row]) -> str:
    names = ["axis", "value", *(f"{stage} s" for stage in SECONDS), "peak MB", "first s", "first peak MB"]
    lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    for row in rows:
        cells = [row["axis"], str(row["value"])]
        if "error" in row:
            cells += [row["error"].replace("|", "/"), *[""] * (len(SECONDS) + 2)]
        else:
            cells += [f"{row['seconds'][stage]:.3f}" for stage in SECONDS]
            cells += [f"{row['peak_bytes'] / 1e6:.0f}", f"{row['first']['total']:.3f}"]
            cells += [f"{row['first']['peak_bytes'] / 1e6:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(title: str, unit: str, rows: list[Row]) -> str:
    """Seconds above, memory below, against the axis's values."""
    values = [row["value"] for row in rows]
    panels = {
        "seconds": [row["seconds"]["total"] for row in rows],
        "peak MB": [row["peak_bytes"] / 1e6 for row in rows],
    }
    height = (PANEL + TOP) * len(panels) + 40
    across = Axis(0, max(values), LEFT, WIDTH - 20)
    parts = [f'<rect width="{WIDTH}" height="{height}"/>', text(LEFT, 16, title, "name", "start")]
    for place, (name, heights) in enumerate(panels.items()):
        top = TOP + 14 + place * (PANEL + TOP)
        parts += panel(name, list(zip(values, heights, strict=True)), across, top)
    parts += [text(across(value), height - 20, str(value), "", "middle") for value in values]
    parts.append(text(WIDTH - 20, height - 5, unit, "", "end"))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(title)}"><style>{STYLE}</style>{"".join(parts)}</svg>\n'
    )


def panel(name: str, points: list[tuple[float, float]], across: Axis, top: float) -> list[str]:
    upwards = Axis(0, max(value for _, value in points) * 1.08, top + PANEL, top + 8)
    parts = [text(4, top + 4, name, "", "start")]
    for tick in upwards.ticks():
        y = upwards(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - 20}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(text(LEFT - 8, y + 4, f"{tick:g}", "", "end"))
    places = [(across(value), upwards(height)) for value, height in points]
    parts.append(f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}"/>')
    return parts + [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y in places]


def text(x: float, y: float, words: str, kind: str, anchor: str) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="{kind}" {place}>{escape(words)}</text>'


def write(folder: Path, common: Row, rows: list[Row]) -> None:
    files = {
        "cost.json": json.dumps({"settings": common, "rows": rows}, indent=1) + "\n",
        "cost.md": table(rows),
    }
    for axis in VALUES:
        done = [row for row in rows if row["axis"] == axis and "error" not in row]
        if done:
            title = f"{Path(common['model']).name}: cost by {axis}"
            files[f"cost-{axis}.svg"] = plot(title, UNITS[axis], done)
    for name, content in files.items():
        with atomic_file(folder / name) as partial:
            partial.write_text(content)


def parse_axis(given: str) -> tuple[str, tuple[int, ...]]:
    """ "size" or "size=256,512"."""
    name, _, values = given.partition("=")
    if name not in VALUES:
        raise argparse.ArgumentTypeError(f"{name!r}: one of {', '.join(VALUES)}")
    try:
        numbers = tuple(int(value) for value in values.split(",")) if values else VALUES[name]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{given!r}: whole numbers after =, with commas") from error
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{given!r}: at least 1")
    return name, numbers


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", help="a model folder, or the name of a known model")
    parser.add_argument("--out", type=Path, default=Path("cost"), help="a folder; default ./cost")
    parser.add_argument("--axis", action="append", type=parse_axis, metavar="NAME[=V,V]", help="default: all")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--size", type=int, default=256, help="side in pixels; default 256")
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--threads", type=int, help="OpenVINO's own choice by default")
    parser.add_argument("--runs", type=int, default=3, help="of each point, after the first")
    parser.add_argument("--prompt", default="noto red apple")
    options = parser.parse_args()
    if options.runs < 1:
        parser.error("--runs: at least 1")
    options.axis = options.axis or list(VALUES.items())
    return options


def main() -> None:
    options = parse()
    common, before = settings(options), options.out / "cost.json"
    kept: list[Row] = []
    if before.exists():
        found = json.loads(before.read_text())
        if found["settings"] != common:
            sys.exit(
                f"{options.out}: measured with other settings ({found['settings']}); choose another --out"
            )
        kept = found["rows"]
    options.out.mkdir(parents=True, exist_ok=True)
    new: list[Row] = []
    for row in measured(options):
        new.append(row)
        write(options.out, common, together(kept, new))
    print((options.out / "cost.md").read_text(), end="")


if __name__ == "__main__":
    main()
