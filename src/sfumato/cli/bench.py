"""`sfumato bench`: how long models take, and what they cost in memory and on the disk."""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from sfumato.cli.common import (
    Progress,
    debug_option,
    example,
    interruptible,
    json_option,
    print_json,
    quiet_option,
    size,
)
from sfumato.cli.settings import RUNNING, running_options
from sfumato.files import human_bytes

if TYPE_CHECKING:
    from sfumato.compare.measure import Task
    from sfumato.compare.profile import Cost, Profile
    from sfumato.compare.records import Model, Speed
    from sfumato.manifest import Reuse

PROMPT = "noto red apple"
STAGES = ("load", "encode", "step", "decode", "total")
HEADINGS = ("model", *STAGES, "", "speedup", "peak memory", "disk")


@dataclass(frozen=True)
class Row:
    """A model and what was measured of it. speedup: the first model's total time over this one's."""

    model: "Model"
    runs: int
    speed: "Speed"
    speedup: float
    profile: "Profile | None" = None


@click.command(
    epilog=example(
        "sfumato bench mini",
        "sfumato bench ./sdxl-fp16 ./sdxl-int8 --runs 10 --steps 20 --size 1024x1024",
        "sfumato bench torch:./stable-diffusion-v1-5 ./sd15-int8 --json",
        "sfumato bench 'torch:./sd35-large?quant=nf4&device=cuda&offload=model' --runs 3",
        "sfumato bench ./sd15-int8 --reuse fast --steps 50",
        "sfumato bench mini --profile",
    )
)
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("--runs", type=int, default=5, show_default=True, help="Pictures that count, of each model.")
@click.option("--prompt", metavar="TEXT", default=PROMPT, show_default=True, help="What to draw.")
@click.option("--steps", type=int, help="Sampling steps.  [default: each model's]")
@click.option("--size", type=size, metavar="WxH", help="Pixels.  [default: each model's]")
@click.option("--guidance", type=float, help="Above 1 each step costs double.  [default: each model's]")
@running_options
@click.option(
    "--reuse",
    metavar="off|balanced|fast",
    help="What steps take over from steps before.  [default: each model's]",
)
@click.option("--profile", is_flag=True, help="Also show which operations take the time, and how they ran.")
@json_option
@quiet_option
@debug_option
def bench(
    models: tuple[str, ...],
    runs: int,
    prompt: str,
    steps: int | None,
    size: tuple[int, int] | None,
    guidance: float | None,
    reuse: str | None,
    profile: bool,
    as_json: bool,
    quiet: bool,
    device: tuple[str, ...],
    **settings: Any,
) -> None:
    """Measure time, memory and size of each MODEL, in turns.

    MODEL is a model folder, a name of `sfumato models`, or torch:CHECKPOINT, a checkpoint in PyTorch
    (float32, on the CPU). After that may come ?quant=nf4|int8|int4|fp8, &device=cuda, &offload=model,
    &dtype=bf16, &compile=1, &t5=0: quote it for the shell.
    """
    from sfumato.compare.measure import Task

    running = {name: settings[name] for name in RUNNING} | {"device": device or "CPU"}
    running["reuse"] = reuse and checked_reuse(reuse, models)
    task = Task(prompt, steps=steps, size=size, guidance=guidance)
    with interruptible(lambda: "nothing was written"), Progress(quiet) as progress:
        rows = measured(models, task, runs, running, profile, progress)
    if as_json:
        from sfumato.compare.environment import environment

        print_json({"models": list(map(_document, rows)), "environment": environment().model_dump()})
        return
    reusing = any(row.speed.reuse != "off" for row in rows)
    headings = (*HEADINGS, "reuse") if reusing else HEADINGS
    cells = [[*_cells(row), *([row.speed.reuse] if reusing else [])] for row in rows]
    click.echo("\n".join(_table(headings, cells)))
    for row in rows:
        if row.profile is not None:
            click.echo(f"\n{row.model.name}: where the time goes")
            click.echo("\n".join(_profile_lines(row.profile)))


def checked_reuse(reuse: str, sources: tuple[str, ...]) -> "Reuse":
    """A way that any of the models can go. Raises InvalidRequest."""
    from sfumato.compare.entries import NONE_REUSES
    from sfumato.compare.worker import TORCH
    from sfumato.errors import InvalidRequest
    from sfumato.runtime.reuse import check_reuse

    if all(source.startswith(TORCH) for source in sources):
        raise InvalidRequest(NONE_REUSES)
    return check_reuse("reuse", reuse)


def measured(
    sources: tuple[str, ...],
    task: "Task",
    runs: int,
    running: dict[str, Any],
    profile: bool,
    progress: Progress,
) -> list[Row]:
    """Load every model in a process of its own and time them in turns; raises as `Worker` and `alternate`."""
    from sfumato.compare.entries import unable_to_reuse
    from sfumato.compare.measure import alternate, check_runs, summarise, unique_names
    from sfumato.compare.worker import Worker, short_name

    check_runs(runs)
    names = unique_names([short_name(source) for source in sources])
    workers = []
    for note in unable_to_reuse(dict(zip(names, sources, strict=True))) if running["reuse"] else ():
        progress.say(note)
    with ExitStack() as stack:
        for name, source in zip(names, sources, strict=True):
            progress.say(f"loading {name}")
            workers.append(stack.enter_context(Worker(source, name=name, **running)))
        taken = alternate(
            workers, [task], runs, on_progress=lambda done, total: progress.step(done, total, "picture")
        )
        speeds = [summarise(worker, taken[worker.name]) for worker in workers]
    profiles = [_profiled(worker.model, task, running, progress) if profile else None for worker in workers]
    first = speeds[0].seconds["total"].median
    return [
        Row(worker.model, runs, speed, first / speed.seconds["total"].median, found)
        for worker, speed, found in zip(workers, speeds, profiles, strict=True)
    ]


def _profiled(model: "Model", task: "Task", running: dict[str, Any], progress: Progress) -> "Profile | None":
    """One picture more, in a process of its own, as counting slows the model and takes memory."""
    from dataclasses import asdict

    from sfumato.compare.worker import Worker

    if model.kind == "torch":
        progress.say(f"no profile of {model.name}: OpenVINO's operations only")
        return None
    progress.say(f"profiling {model.name}")
    with Worker(model.source, name=model.name, profiled=True, **running) as worker:
        worker.generate(**asdict(task))
        return worker.profile()


def _document(row: Row) -> dict[str, Any]:
    seconds = row.speed.seconds
    document = {
        "model": row.model.name,
        "source": row.model.source,
        "kind": row.model.kind,
        "family": row.model.family,
        "precision": row.model.precision,
        "runs": row.runs,
        "seconds": {stage: round(seconds[stage].median, 5) for stage in STAGES},
        "quartiles": {
            stage: [round(timing.low, 5), round(timing.high, 5)] for stage, timing in seconds.items()
        },
        "components": {name: round(timing.median, 5) for name, timing in row.speed.components.items()},
        "speedup": round(row.speedup, 3),
        "peak_memory_bytes": row.speed.peak_memory_bytes,
        "disk_bytes": row.model.disk_bytes,
        "reuse": row.speed.reuse,
        "guidance_every": row.speed.guidance_every,
    }
    return document | ({} if row.profile is None else {"profile": row.profile.model_dump(mode="json")})


def _cells(row: Row) -> list[str]:
    seconds = row.speed.seconds
    total = seconds["total"]
    return [
        row.model.name,
        *(_seconds(seconds[stage].median) for stage in STAGES),
        f"({_seconds(total.low)} to {_seconds(total.high)})",
        f"{row.speedup:.2f}x",
        human_bytes(row.speed.peak_memory_bytes),
        human_bytes(row.model.disk_bytes),
    ]


def _profile_lines(profile: "Profile") -> list[str]:
    def cells(cost: "Cost", kind: str) -> list[str]:
        return [
            cost.component,
            kind,
            cost.exec_type,
            _seconds(cost.seconds),
            f"{cost.share:.0%}",
            f"{cost.runs:g}",
        ]

    columns = ("kernel", "time", "share", "runs")
    groups = [cells(cost, cost.node_type) for cost in profile.groups]
    single = [
        cells(cost, (cost.name or cost.node_type).removeprefix(f"__module.{cost.component}."))
        for cost in profile.operations
    ]
    return [
        *_table(("component", "operation", *columns), groups, left=3),
        "",
        *_table(("component", "slowest single ones", *columns), single, left=3),
    ]


def _table(headings: tuple[str, ...], rows: list[list[str]], left: int = 1) -> list[str]:
    """Lines of aligned columns; the first `left` of them are text, the others figures."""
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    lines = []
    for row in (headings, *rows):
        cells = zip(row, widths, strict=True)
        padded = [
            f"{cell:<{width}}" if i < left else f"{cell:>{width}}" for i, (cell, width) in enumerate(cells)
        ]
        lines.append("  ".join(padded).rstrip())
    return lines


def _seconds(value: float) -> str:
    """`12.3 s`, `0.45 s` or `8.1 ms`."""
    if value < 0.1:
        return f"{value * 1000:.1f} ms"
    return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"
