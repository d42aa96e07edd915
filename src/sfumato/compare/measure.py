"""Timing models in turns, and what comes of it."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Protocol

from ..errors import InvalidRequest
from .records import Run, Speed, Timing

OnProgress = Callable[[int, int], None]
MOST_RUNS = 10_000


@dataclass(frozen=True)
class Task:
    """What models are asked for; what is None is each model's default. size: width and height in pixels."""

    prompt: str
    negative: str | None = None
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    size: tuple[int, int] | None = None


class Measurable(Protocol):
    """What is measured: a Worker."""

    name: str
    load_seconds: float

    def generate(
        self,
        prompt: str,
        *,
        negative: str | None = None,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        size: tuple[int, int] | None = None,
    ) -> Run:
        """One picture's times."""

    def peak_memory_bytes(self) -> int:
        """Largest memory up to the last picture."""


def alternate(
    workers: Sequence[Measurable],
    tasks: Sequence[Task],
    runs: int,
    warmup: int = 1,
    on_progress: OnProgress | None = None,
) -> dict[str, list[Run]]:
    """The times of `runs` rounds, in which each worker does every task, by the workers' names.

    Before them come `warmup` rounds of the first task, which do not count. Workers take turns, in one order
    and then in the other, so that a machine that slows down or warms up is fair to all.
    on_progress: told how many pictures are done, and of how many. Raises InvalidRequest for no runs.
    """
    check_runs(runs)
    names = [worker.name for worker in workers]
    if len(set(names)) < len(names):
        raise InvalidRequest(f"models {', '.join(names)}: give each a name of its own")
    total = len(workers) * (warmup + runs * len(tasks))
    done = 0
    taken: dict[str, list[Run]] = {name: [] for name in names}
    rounds = [tasks[0]] * warmup + list(tasks) * runs
    for number, task in enumerate(rounds):
        for worker in workers if number % 2 == 0 else reversed(workers):
            run = worker.generate(**asdict(task))
            done += 1
            if number >= warmup:
                taken[worker.name].append(run)
            if on_progress is not None:
                on_progress(done, total)
    return taken


def check_runs(runs: int) -> None:
    """Raise InvalidRequest unless so many runs can be measured."""
    if not 1 <= runs <= MOST_RUNS:
        raise InvalidRequest(f"runs {runs}: must be a whole number from 1 to {MOST_RUNS}")


def summarise(worker: Measurable, runs: Sequence[Run]) -> Speed:
    """Medians and quartiles of one run or more; "step" is a run's mean, as its steps may differ in kind."""
    stages = {
        "encode": [run.encode for run in runs],
        "step": [fmean(run.steps) for run in runs],
        "denoise": [run.denoise for run in runs],
        "decode": [run.decode for run in runs],
        "total": [run.total for run in runs],
    }
    return Speed(
        seconds={
            "load": Timing.of([worker.load_seconds]),
            **{stage: Timing.of(seconds) for stage, seconds in stages.items()},
        },
        components={
            name: Timing.of([run.components.get(name, 0.0) for run in runs]) for name in runs[0].components
        },
        peak_memory_bytes=worker.peak_memory_bytes(),
        reuse=runs[0].reuse,
        guidance_every=runs[0].guidance_every,
    )


def unique_names(names: Sequence[str]) -> list[str]:
    """The names, with a number behind those that came before: "mini", "mini-2"."""
    unique: list[str] = []
    for name in names:
        number, candidate = 1, name
        while candidate in unique:
            number += 1
            candidate = f"{name}-{number}"
        unique.append(candidate)
    return unique
