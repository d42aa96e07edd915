"""Quality against time for every switch alone and for their stacks, as a table and a plot.

    python benchmarks/switches.py ./mini-sd ./mini-sd-int8 --times ./sd15 ./sd15-int8 --out switches

MODEL and INT8 are one model, in 16 bits and in 8, that draws what its captions say: quality is that of its
pictures, held against those of MODEL with nothing switched on, prompt by prompt and seed by seed. --times
names another pair for seconds, such as full-size models, whose pictures nobody needs to see; without it
both come from the same pictures. For times, --few steps are run where all are alike, and the rest scaled.
Writes switches.json, switches.md and switches.svg.
"""

import argparse
import json
import statistics
import sys
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from likeness import Against, Likeness, prompts_of

from sfumato import Pipeline
from sfumato.compare.plots import Axis
from sfumato.files import atomic_file
from sfumato.runtime.parameters import parse_size
from sfumato.runtime.reuse import LEAST_STEPS

WIDTH, HEIGHT, LEFT, BOTTOM = 720, 420, 56, 380
LETTER, LINE = 6.5, 13
STYLE = (
    "text{font:12px sans-serif;fill:#333}.tick{fill:#777}.grid{stroke:#ddd}rect{fill:#fff}"
    ".alone{fill:#2a6fb0}.stacked{fill:#c2571a}"
)


@dataclass(frozen=True)
class Switch:
    """A way to make pictures. whole: its steps differ, so that all are run. stacked: several at once."""

    name: str
    eight_bits: bool = False
    merging: float = 0.0
    calling: dict[str, Any] = field(default_factory=dict)
    stacked: bool = False

    @property
    def whole(self) -> bool:
        return bool(self.calling)


GUIDED = {"guidance_every": 2}
SWITCHES = (
    Switch("nothing"),
    Switch("8 bits", eight_bits=True),
    Switch("merging 0.3", merging=0.3),
    Switch("merging 0.5", merging=0.5),
    Switch("guidance every 2", calling=GUIDED),
    Switch("reuse balanced", calling={"reuse": "balanced"}),
    Switch("reuse fast", calling={"reuse": "fast"}),
    Switch("8 bits, merging 0.5", True, 0.5, stacked=True),
    Switch("8 bits, reuse balanced", True, calling={"reuse": "balanced"}, stacked=True),
    Switch("balanced: 8 bits, reuse balanced, guidance", True, 0, GUIDED | {"reuse": "balanced"}, True),
    Switch("fast: 8 bits, reuse fast, guidance", True, 0, GUIDED | {"reuse": "fast"}, True),
    Switch("8 bits, reuse fast, guidance, merging 0.5", True, 0.5, GUIDED | {"reuse": "fast"}, True),
)


@dataclass(frozen=True)
class Row:
    """A switch's figures. seconds: of a picture. likeness: to the pictures of `nothing`."""

    name: str
    seconds: float
    likeness: Likeness


def loaded(pair: list[Path], switch: Switch, threads: int | None) -> Pipeline:
    return Pipeline.load(pair[switch.eight_bits], threads=threads, token_merging=switch.merging)


def seconds_of(pair: list[Path], switch: Switch, prompt: str, options: argparse.Namespace) -> float:
    """Median seconds of a picture of `options.steps`, after one that loads."""
    pipe, runs = loaded(pair, switch, options.threads), []
    steps = options.steps if switch.whole else min(options.few, options.steps)
    given = {"size": options.size, "guidance": options.guidance, **switch.calling}
    pipe(prompt, seed=0, steps=min(steps, LEAST_STEPS), **given)
    for seed in range(options.runs):
        seconds = pipe(prompt, seed=seed, steps=steps, **given).seconds
        runs.append(seconds["total"] + seconds["denoise"] / steps * (options.steps - steps))
    return statistics.median(runs)


def pictures_of(pair: list[Path], switch: Switch, prompts: list[str], options: argparse.Namespace) -> Any:
    """Picture i of prompt i with seed i, uint8 [n, height, width, 3], and the median seconds of one."""
    pipe, made, seconds = loaded(pair, switch, options.threads), [], []
    for seed, prompt in enumerate(prompts):
        result = pipe(prompt, seed=seed, steps=options.steps, guidance=options.guidance, **switch.calling)
        made.append(np.asarray(result.images[0]))
        seconds.append(result.seconds["total"])
    return np.stack(made), statistics.median(seconds)


def measured(switch: Switch, options: argparse.Namespace, against: Against) -> Row:
    pair = [options.model, options.int8]
    pictures, seconds = pictures_of(pair, switch, against.prompts, options)
    if options.times:
        seconds = seconds_of(options.times, switch, against.prompts[0], options)
    return Row(switch.name, seconds, against.likeness(pictures))


def table(rows: list[Row]) -> str:
    lines = ["| | seconds | times | R@1 | PSNR | distance | Frechet |", "|---" * 7 + "|"]
    for row in rows:
        cells = [
            row.name,
            f"{row.seconds:.2f}",
            f"{rows[0].seconds / row.seconds:.1f}",
            said("{:.1%}", row.likeness.recall_1),
            said("{:.1f} dB", row.likeness.psnr),
            said("{:.3f}", row.likeness.distance),
            said("{:.2f}", row.likeness.frechet),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def said(form: str, figure: float | None) -> str:
    return "" if figure is None else form.format(figure)


def plot(rows: list[Row]) -> str:
    """PSNR upwards, seconds to the right, on a scale of doublings: up and to the left is better."""
    compared = [(row, row.likeness.psnr) for row in rows if row.likeness.psnr is not None]
    seconds = np.log2([row.seconds for row, _ in compared])
    across = Axis(float(seconds.min()) - 0.3, float(seconds.max()) + 1.6, LEFT, WIDTH - 8)
    nearness = [near for _, near in compared]
    upwards = Axis(min(nearness) - 2, max(nearness) + 2, BOTTOM, 16)
    parts = [f'<rect width="{WIDTH}" height="{HEIGHT}"/>']
    for tick in upwards.ticks(6):
        y = upwards(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - 8}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for power in range(int(np.ceil(across.low)), int(across.high) + 1):
        x, words = across(power), f"{2.0**power:g} s"
        parts.append(f'<text class="tick" x="{x:.1f}" y="{BOTTOM + 18}" text-anchor="middle">{words}</text>')
    stacks = {switch.name for switch in SWITCHES if switch.stacked}
    taken: list[tuple[float, float, float]] = []
    for (row, near), place in zip(compared, seconds, strict=True):
        x, y = across(float(place)), upwards(near)
        kind = "stacked" if row.name in stacks else "alone"
        parts.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>')
        below = free(x + 9, y + 4, row.name, taken)
        parts.append(f'<text class="{kind}" x="{x + 9:.1f}" y="{below:.1f}">{escape(row.name)}</text>')
    parts.append(f'<text class="tick" x="4" y="{HEIGHT - 6}">PSNR in dB against seconds of a picture</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="Quality against time of each switch"><style>{STYLE}</style>{"".join(parts)}</svg>\n'
    )


def free(left: float, y: float, words: str, taken: list[tuple[float, float, float]]) -> float:
    """Where a label from `left` may stand without touching another, at y or below; it is added to `taken`."""
    right = left + LETTER * len(words)
    while any(abs(y - other) < LINE and left < end and start < right for start, end, other in taken):
        y += 1
    taken.append((left, right, y))
    return y


def write(folder: Path, common: dict[str, Any], rows: list[Row]) -> None:
    document = json.dumps({"settings": common, "rows": [asdict(row) for row in rows]}, indent=1) + "\n"
    files = {"switches.json": document, "switches.md": table(rows)}
    if len(rows) > 2:
        files["switches.svg"] = plot(rows)
    for name, content in files.items():
        with atomic_file(folder / name) as partial:
            partial.write_text(content)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path, help="a model folder in 16 bits")
    parser.add_argument("int8", type=Path, help="the same model in 8 bits")
    parser.add_argument(
        "--times", nargs=2, type=Path, metavar=("MODEL", "INT8"), help="another pair, for seconds alone"
    )
    parser.add_argument(
        "--size", type=parse_size, help="of the pictures that are timed; the model's own by default"
    )
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--few", type=int, default=3, help="steps that are run where all are alike")
    parser.add_argument("--guidance", type=float, help="the model's own by default")
    parser.add_argument("--prompts", type=int, default=100, help="how many")
    parser.add_argument("--file", type=Path, help="a prompt a line; else captions that ship")
    parser.add_argument("--runs", type=int, default=1, help="timed pictures of each switch")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=Path("switches"))
    return parser.parse_args()


def main() -> None:
    options = parse()
    artifact = Pipeline.load(options.model).artifact
    against = Against(prompts_of(artifact, options.file, options.prompts))
    options.out.mkdir(parents=True, exist_ok=True)
    common = {name: str(value) for name, value in vars(options).items() if name != "out"}
    rows: list[Row] = []
    for switch in SWITCHES:
        rows.append(measured(switch, options, against))
        print(rows[-1], file=sys.stderr, flush=True)
        write(options.out, common, rows)
    print(table(rows), end="")


if __name__ == "__main__":
    main()
