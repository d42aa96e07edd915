"""The published table of Stable Diffusion 1.x on CPUs (quantization and token merging), measured here.

    python benchmarks/seed_table.py checkpoints/sd15 work

CHECKPOINT is a diffusers folder of SD 1.x; WORK is where the models are made, and found by the next run: in
float32, and in INT8 (the recipe int8), which also runs with 0.4 of its tokens merged. They make guided
512x512 pictures in turns, each in a process of its own, PyTorch in float32 among them; OpenVINO's float32
model computes in float32 too, the INT8 ones as the processor likes best.

A picture of 50 steps is what its encoding, 50 times the median step, and its decoding take: with --steps
fewer are made and the median of these is taken. Published ("Optimizing Stable Diffusion for Intel CPUs with
NNCF and Hugging Face Optimum"): 50 steps on an Ice Lake Xeon, and what the pipeline takes on the disk.
"""

import argparse
import json
import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import sfumato
from sfumato.compare.records import Run
from sfumato.compare.worker import Worker

PUBLISHED_STEPS = 50
SIZE = (512, 512)
GUIDANCE = 7.5
PROMPT = "cartoon bird"


@dataclass(frozen=True)
class Published:
    """A row of the table: seconds of a picture, and bytes on the disk."""

    seconds: float
    bytes: float


PUBLISHED = {
    "PyTorch float32": Published(230.5, 3.44e9),
    "OpenVINO float32": Published(120.0, 3.44e9),
    "INT8": Published(59.0, 0.86e9),
    "INT8, merging 0.4": Published(44.6, 0.86e9),
}


@dataclass(frozen=True)
class Row:
    """What was measured: seconds of a picture of 50 steps, of one step, and bytes on the disk."""

    name: str
    seconds: float
    step: float
    bytes: int
    peak_memory_bytes: int
    faster: float
    published_faster: float


def models(checkpoint: Path, work: Path, samples: int | None) -> dict[str, dict[str, Any]]:
    """How the rows are loaded, by name; models are made where they are missing."""
    made = {name: work / name for name in ("float32", "fp16", "int8")}
    steps = {
        "float32": lambda out: sfumato.convert(checkpoint, out, precision="fp32"),
        "fp16": lambda out: sfumato.convert(checkpoint, out),
        "int8": lambda out: sfumato.optimize(made["fp16"], out, recipe="int8", samples=samples),
    }
    for name, make in steps.items():
        if not (made[name] / "sfumato.json").is_file():
            print(f"making {made[name]}", file=sys.stderr)
            make(made[name])
    return {
        "PyTorch float32": {"source": f"torch:{checkpoint}"},
        "OpenVINO float32": {"source": str(made["float32"]), "precision": "f32"},
        "INT8": {"source": str(made["int8"])},
        "INT8, merging 0.4": {"source": str(made["int8"]), "token_merging": 0.4},
    }


def measure(workers: dict[str, Worker], rounds: int, steps: int) -> dict[str, list[Run]]:
    """One picture of each in turns, `rounds` times after one that does not count."""
    runs: dict[str, list[Run]] = {name: [] for name in workers}
    for number in range(rounds + 1):
        for name, worker in workers.items():
            made = worker.generate(PROMPT, seed=42, steps=steps, guidance=GUIDANCE, size=SIZE)
            print(f"round {number}: {name} {made.total:.2f} s", file=sys.stderr)
            if number:
                runs[name].append(made)
    return runs


def table(workers: dict[str, Worker], runs: dict[str, list[Run]]) -> list[Row]:
    """The rows, times scaled to 50 steps."""
    step = {name: median([each for run in made for each in run.steps]) for name, made in runs.items()}
    seconds = {
        name: PUBLISHED_STEPS * step[name] + median(run.encode + run.decode for run in made)
        for name, made in runs.items()
    }
    slowest, published = seconds["PyTorch float32"], PUBLISHED["PyTorch float32"].seconds
    return [
        Row(
            name,
            seconds[name],
            step[name],
            worker.model.disk_bytes,
            worker.peak_memory_bytes(),
            slowest / seconds[name],
            published / PUBLISHED[name].seconds,
        )
        for name, worker in workers.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="of a picture; 50 measures it whole")
    parser.add_argument("--samples", type=int, help="of the calibration (default: the recipe's)")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    loaded = models(given.checkpoint, given.work, given.samples)
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(Worker(**options, name=name, threads=given.threads))
            for name, options in loaded.items()
        }
        rows = table(workers, measure(workers, given.rounds, given.steps))
    if given.json:
        print(json.dumps({"steps_measured": given.steps, "rows": [asdict(row) for row in rows]}, indent=2))
        return
    print(f"512x512, 50 guided steps, scaled from {given.rounds} pictures of {given.steps} steps")
    print("| | picture | times PyTorch | published | disk | published | memory |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        known = PUBLISHED[row.name]
        print(
            f"| {row.name} | {row.seconds:.1f} s | {row.faster:.2f} | {known.seconds:.1f} s, "
            f"{row.published_faster:.1f} | {row.bytes / 1e9:.2f} GB | {known.bytes / 1e9:.2f} GB | "
            f"{row.peak_memory_bytes / 1e9:.1f} GB |"
        )


if __name__ == "__main__":
    main()
