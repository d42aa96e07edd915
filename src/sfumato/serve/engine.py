"""Generations on request: each in a thread of its own, one at a time for each model, told of as they go."""

import math
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue
from statistics import median
from typing import Any
from weakref import WeakSet

from PIL.Image import Image

from ..artifact import Artifact, find_model, load_artifact
from ..errors import Cancelled
from ..runtime.build import build_request
from ..runtime.pipeline import Pipeline
from ..runtime.progress import Cancel, Step, stop_if
from ..runtime.request import Request
from ..runtime.result import Result
from .line import Line
from .pool import Pool, Wanted

PAUSE = 0.15
"""Seconds between two steps that are told: more of them keep a browser from seeing a click on Stop."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a person asks for.

    model, refiner: names, or model folders. given: for `build_request`. token_merging: see `Pipeline.load`;
    None or 0 for none.
    """

    model: str
    prompt: str
    given: Mapping[str, Any] = field(default_factory=dict)
    refiner: str | None = None
    token_merging: float | None = None


@dataclass(frozen=True)
class Waiting:
    """In line, with `ahead` others to finish first."""

    ahead: int


@dataclass(frozen=True)
class Started:
    """Its turn has come; what is not loaded yet is loaded now."""


@dataclass(frozen=True)
class Stepped:
    """A step is done: number `done` of `total`, over all pictures. left: seconds to the end, where known."""

    step: Step
    done: int
    total: int
    left: float | None


@dataclass(frozen=True)
class Made:
    """Picture `index` is done."""

    index: int
    image: Image


@dataclass(frozen=True)
class Finished:
    """All pictures are done. step_seconds: median time between two steps, NaN where there was but one."""

    result: Result
    step_seconds: float


GRACE = 30.0
"""Seconds for work to end when the server does: networks that are being loaded cannot be stopped."""
Event = Waiting | Started | Stepped | Made | Finished
Tell = Callable[[Event], None]


class Task:
    """One piece of work under way."""

    def __init__(self, engine: "Engine", work: Work) -> None:
        self.work = work
        self._events: SimpleQueue[Event | BaseException] = SimpleQueue()
        self._cancelled = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(engine,), name="generation", daemon=True)
        self._thread.start()

    def events(self) -> Generator[Event, None, None]:
        """What happens, as it happens; `Finished` is the last. To leave early cancels the work.

        Of steps that went by unseen only the last one is told, and none within PAUSE after another one, but
        the last of all. Raises Cancelled where somebody cancelled it, and what a pipeline raises.
        """
        told = -math.inf
        try:
            for event in self._latest():
                if isinstance(event, Stepped):
                    if event.done < event.total and time.monotonic() - told < PAUSE:
                        continue
                    told = time.monotonic()
                yield event
                if isinstance(event, Finished):
                    return
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Stop before the next step; nothing happens where it has ended."""
        self._cancelled.set()

    def wait(self, seconds: float | None = None) -> bool:
        """Whether it has ended, after at most so many seconds."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _latest(self) -> Iterator[Event]:
        """All that happens, but for steps that another one has followed. Raises what went wrong."""
        event = self._events.get()
        while not isinstance(event, BaseException):
            following = None if self._events.empty() else self._events.get()
            if not (isinstance(event, Stepped) and isinstance(following, Stepped)):
                yield event
            event = following or self._events.get()
        raise event

    def _run(self, engine: "Engine") -> None:
        try:
            engine.carry_out(self.work, self._events.put, self._cancelled.is_set)
        except BaseException as error:
            self._events.put(error)


class Engine:
    """Keeps models loaded and makes pictures with them, for any number of threads.

    at_once: generations of one model at the same time. waiting: how many more may wait for one.
    options: for `Pipeline.load`, such as device, threads and memory.
    """

    def __init__(
        self, *, at_once: int = 1, waiting: int = 16, options: Mapping[str, Any] | None = None
    ) -> None:
        self._at_once, self._waiting = at_once, waiting
        self._lines: dict[Path, Line] = {}
        self._pool = Pool(options or {})
        self._seconds: dict[Path, float] = {}
        self._tasks: WeakSet[Task] = WeakSet()
        self._closed = False
        self._lock = threading.Lock()

    def start(self, work: Work) -> Task:
        """Begin; what is wrong with the work is told by the task's events. Raises Cancelled once closed."""
        with self._lock:
            if self._closed:
                raise Cancelled("the server is ending and takes no more work")
            task = Task(self, work)
            self._tasks.add(task)
        return task

    def waiting(self, model: str) -> int:
        """How many are at work with a model, or wait for it."""
        with self._lock:
            line = self._lines.get(find_model(model).resolve())
        return 0 if line is None else len(line)

    def step_seconds(self, folder: Path) -> float | None:
        """Seconds of a step when the model of a folder last ran here, None where it has not."""
        return self._seconds.get(folder.resolve())

    def warm(self, model: str) -> Task:
        """Load a model and try it with one step, so that the first picture comes at once."""
        return self.start(Work(model=model, prompt="", given={"steps": 1, "seed": 0}))

    def close(self) -> None:
        """Cancel all work, take no more, wait until it has ended, and let go of the models.

        Python must not end before its threads have: OpenVINO aborts the process then.
        """
        with self._lock:
            self._closed = True
            tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        end = time.monotonic() + GRACE
        for task in tasks:
            task.wait(max(0.0, end - time.monotonic()))
        self._pool.close()

    def carry_out(self, work: Work, tell: Tell, cancelled: Cancel) -> None:
        """Do the work in this thread, and tell of it."""
        names = [work.model] if work.refiner is None else [work.model, work.refiner]
        artifacts = [load_artifact(find_model(name)) for name in names]
        request = build_request(artifacts[0].manifest, work.prompt, work.given)
        line = self._line(artifacts[0])
        with line.turn(lambda: stop_if(cancelled), lambda ahead: tell(Waiting(ahead))):
            stop_if(cancelled)
            tell(Started())
            first, *refiners = artifacts
            wanted = [Wanted(first, work.token_merging or None), *map(Wanted, refiners)]
            with self._pool.borrowed(wanted) as pipelines:
                result, seconds = _generate(pipelines, request, tell, cancelled)
        if not (work.token_merging or work.refiner or math.isnan(seconds)):
            self._seconds[first.path.resolve()] = seconds
        tell(Finished(result, seconds))

    def _line(self, artifact: Artifact) -> Line:
        key = artifact.path.resolve()
        with self._lock:
            if key not in self._lines:
                self._lines[key] = Line(artifact.manifest.name, self._at_once, self._waiting)
            return self._lines[key]


def _generate(
    pipelines: list[Pipeline], request: Request, tell: Tell, cancelled: Cancel
) -> tuple[Result, float]:
    """The pictures, and the median seconds of a step."""
    marks: list[float] = []

    def on_step(step: Step) -> None:
        marks.append(time.perf_counter())
        done, total = len(marks), step.steps * step.images
        left = None if done < 2 else (marks[-1] - marks[0]) / (done - 1) * (total - done)
        tell(Stepped(step, done, total, left))

    first, *others = pipelines
    result = first.generate(
        request,
        on_step=on_step,
        cancel=cancelled,
        on_image=lambda index, image, _: tell(Made(index, image)),
        refiner=others[0] if others else None,
    )
    gaps = [after - before for before, after in pairwise(marks)]
    return result, median(gaps) if gaps else math.nan
