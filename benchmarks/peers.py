"""Sfumato against other ways of running the same model on a processor: one command, one table.

    python benchmarks/peers.py checkpoints/sd15 work
    python benchmarks/peers.py checkpoints/sd15 work --ours "tuned=./sd15-fast?token_merging=0.5" --json
    python benchmarks/peers.py checkpoints/sd15 work --only "GenAI" --only "Sfumato fast"

CHECKPOINT is a diffusers folder; WORK is where models for the peers are made, and found by the next run: fp16
and int8 (by Sfumato; GenAI runs both too), hybrid (convolutions in W8A8, weights of the rest in 8 bits, as
Optimum quantizes UNets), and onnx-WIDTHxHEIGHT. Link those that you have. A peer that is not installed is a
row that says how to install it.

Every row is a process of its own, rows take turns in each round. In it a picture is made twice: from the
command to the first PNG in memory is the cold time, the second picture is the warm one. Nothing is cached
from before: neither OpenVINO's nor PyTorch's compiled networks. Few steps are run (--steps), and pictures of
more (--of) take what is no step, and so many times the median step. Rows whose steps differ, as with reuse
and caches, run all steps. The same prompt, guidance, size, number of steps and threads for all; DDIM, Euler
in stable-diffusion.cpp, and flow-matching Euler for SD3.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Timer
from typing import Any

from peers_engines import Job
from peers_rows import BASELINE, MAKING, ROWS, Row, Work, ours
from peers_times import Figures, Outing, Picture, asked, figures

from sfumato.compare.environment import environment
from sfumato.runtime.parameters import parse_size

PACKAGES = ("openvino-genai", "stable-diffusion-cpp-python", "onnxruntime")
PROMPT = "a harbour at dawn, fishing boats, mist over the water"
SEED = 42


class PeerFailed(Exception):
    """A process that did not make its pictures; says why in one line."""


@dataclass(frozen=True)
class Result:
    """A row and its figures, or the reason why there are none."""

    row: Row
    figures: Figures | None
    reason: str | None = None

    def document(self) -> dict[str, Any]:
        measured = None if self.figures is None else asdict(self.figures)
        row = {"name": self.row.name, "settings": self.row.settings, "whole": self.row.whole}
        return row | {"measured": measured, "reason": self.reason}


def go(job: Job, limit: float) -> Outing:
    """Run one process to its end. Raises PeerFailed where it fails, or takes longer than `limit` seconds."""
    command = [sys.executable, str(Path(__file__).with_name("peers_child.py")), json.dumps(asdict(job))]
    with tempfile.TemporaryDirectory(prefix="peers-") as caches, tempfile.TemporaryFile() as complaints:
        settings = {"OMP_NUM_THREADS": str(job.threads), "TORCHINDUCTOR_CACHE_DIR": f"{caches}/torch"}
        settings |= {"SFUMATO_CACHE": f"{caches}/sfumato"}
        began = time.perf_counter()
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=complaints, env=os.environ | settings
        ) as process:
            stop = Timer(limit, process.kill)
            stop.start()
            try:
                answers = _answers(process, began)
            finally:
                stop.cancel()
                process.kill()
        if len(answers) == len(job.pictures) + 1:
            *made, (_, last) = answers
            pictures = [Picture(each["seconds"], tuple(each["marks"])) for _, each in made]
            return Outing(made[0][0], tuple(pictures), last["peak_memory_bytes"])
        took = time.perf_counter() - began
        complaints.seek(0)
        said = complaints.read().decode(errors="replace").strip().splitlines()
    if took >= limit:
        raise PeerFailed(f"stopped after {limit:.0f} s; give --limit for more")
    raise PeerFailed(f"failed: {said[-1].strip()[:200] if said else 'without a word'}")


def _answers(process: "subprocess.Popen[bytes]", began: float) -> list[tuple[float, dict[str, Any]]]:
    """What a process answers, and how many seconds after `began`."""
    assert process.stdout is not None
    return [(time.perf_counter() - began, json.loads(line)) for line in process.stdout]


def make_missing(work: Work, rows: Sequence[Row]) -> None:
    """Make the models that the rows need, each in a process of its own."""
    for source in work.missing({row.source for row in rows}):
        print(f"making {work.path(source)}", file=sys.stderr)
        subprocess.run(MAKING[source](work), check=True, stdout=sys.stderr)


def measure(rows: Sequence[Row], job: Job, work: Work, given: argparse.Namespace) -> list[Result]:
    """The rows in turns, `rounds` times, in one order and then in the other; one that fails is left out."""
    pipeline = json.loads((work.checkpoint / "model_index.json").read_text())["_class_name"]
    reasons = {row.name: reason for row in rows if (reason := row.reason_against(pipeline))}
    outings: dict[str, list[Outing]] = {row.name: [] for row in rows}
    make_missing(work, [row for row in rows if row.name not in reasons])
    for number in range(given.rounds):
        for row in rows if number % 2 == 0 else reversed(rows):
            if row.name in reasons:
                continue
            pictures = asked(given.steps, given.of, whole=row.whole)
            source = str(work.path(row.source))
            own = replace(job, engine=row.engine, source=source, options=row.options, pictures=pictures)
            try:
                outings[row.name].append(go(own, given.limit))
            except PeerFailed as failure:
                reasons[row.name] = str(failure)
            else:
                warm = outings[row.name][-1].pictures[1].seconds
                print(f"round {number + 1}: {row.name} {warm:.2f} s, {pictures[1]} steps", file=sys.stderr)
    return [
        Result(row, None, reasons[row.name])
        if row.name in reasons
        else Result(row, figures(outings[row.name], given.of, whole=row.whole))
        for row in rows
    ]


def markdown(results: Sequence[Result], of: Sequence[int]) -> str:
    """The table. The last of the numbers of steps is the one that the baseline is compared at."""
    pictures = [f"{steps} steps" for steps in of]
    lines = ["| | settings | " + " | ".join(pictures) + " | first picture | step | faster | memory |"]
    lines.append("|---" * (len(of) + 6) + "|")
    baseline = next((each.figures for each in results if each.row.name == BASELINE), None)
    for result in results:
        found = result.figures
        if found is None:
            cells = [result.row.name, result.reason or "", *[""] * (len(of) + 4)]
        else:
            scale = "" if result.row.whole else "~"
            faster = "" if baseline is None else f"{baseline.warm[of[-1]] / found.warm[of[-1]]:.2f}"
            cells = [result.row.name, result.row.settings]
            cells += [f"{scale}{found.warm[steps]:.1f} s" for steps in of]
            cells += [f"{scale}{found.cold[of[-1]]:.1f} s", f"{found.step:.2f} s", faster]
            cells += [f"{found.peak_memory_bytes / 1e9:.1f} GB"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def chosen(given: argparse.Namespace) -> list[Row]:
    """The rows that were asked for. Exits where none was, or names are not unique."""
    rows = [*ROWS, *given.ours]
    wanted = [row for row in rows if not given.only or any(part in row.name for part in given.only)]
    wanted = [row for row in wanted if not any(part in row.name for part in given.skip)]
    names = [row.name for row in wanted]
    if not names or len(set(names)) < len(names):
        known = ", ".join(row.name for row in rows)
        raise SystemExit(f"error: give each row a name of its own, and choose at least one of: {known}")
    return wanted


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--ours", action="append", default=[], type=ours, metavar="NAME=FOLDER?OPTIONS")
    parser.add_argument("--only", action="append", default=[], metavar="PART", help="of the rows' names")
    parser.add_argument("--skip", action="append", default=[], metavar="PART", help="of the rows' names")
    parser.add_argument("--size", type=parse_size, default="512x512", help="WxH in pixels")
    parser.add_argument("--steps", type=int, default=3, help="that are run where steps are alike; from 2 on")
    parser.add_argument("--of", default="20,50", help="steps of the pictures that are told")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--guidance", type=float, default=7.5)
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--threads", type=int, default=environment().cores)
    parser.add_argument("--samples", type=int, help="of calibrations; a few where times alone count")
    parser.add_argument("--limit", type=float, default=1800, help="seconds for one process")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    given.of = sorted({int(steps) for steps in given.of.split(",")})
    if given.steps < 2 or given.rounds < 1 or given.of[0] < 2:
        parser.error("--steps and --of must be 2 or more, --rounds 1 or more")
    return given


def main() -> None:
    given = parse()
    rows = chosen(given)
    width, height = given.size
    work = Work(given.checkpoint, given.work, given.size, given.samples)
    scheduler = json.loads((given.checkpoint / "scheduler" / "scheduler_config.json").read_text())
    flows = scheduler["_class_name"].startswith("FlowMatch")
    job = Job(
        engine="",
        source="",
        prompt=given.prompt,
        guidance=given.guidance,
        seed=SEED,
        width=width,
        height=height,
        threads=given.threads,
        pictures=(),
        sampler=None if flows else "ddim",
    )
    results = measure(rows, job, work, given)
    if given.json:
        document: dict[str, Any] = {"environment": environment().model_dump(), "packages": _versions()}
        document |= {"size": [width, height], "threads": given.threads, "guidance": given.guidance}
        document |= {"steps_run": given.steps, "of": given.of, "rounds": given.rounds}
        print(json.dumps(document | {"rows": [each.document() for each in results]}, indent=2))
        return
    print(f"{work.size_text}, guidance {given.guidance}, {given.threads} threads, {given.rounds} rounds")
    print(f"~ scaled from pictures of {given.steps} steps; the others were run in full\n")
    print(markdown(results, given.of))


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = dict.fromkeys(PACKAGES)
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main()
