"""Converting and optimizing behind a page or an API: commands that wait for their turn and can be stopped."""

import atexit
import re
import sys
import threading
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

from ...artifact import embedded_models
from ...convert import Storage
from ...errors import InvalidRequest
from .arguments import convert_options, optimize_options, shortened, value
from .child import GRACE, run_child
from .task import Job, Kind, Task, verdict

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
START = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from sfumato.cli import main
sys.exit(main())
"""
COMMAND = (sys.executable, "-P", "-c", START)
"""`sfumato`, which SIGINT interrupts however the server was started: a shell's background jobs ignore it.

-P: no modules from the folder that the server runs in.
"""
MOST_ENDED = 50
"""How many jobs that have ended are remembered."""


class Jobs:
    """Jobs that write models into one folder: one runs at a time, the others wait in order. Safe for threads.

    folder: where the models are written. waiting: how many may wait. command: what runs, before its
    arguments. Each job is a process group of its own, which ends with `close` or when Python exits; where
    this process is killed (SIGKILL, or a SIGTERM that nothing turns into an exit), the job that runs goes on
    to its end alone.
    """

    def __init__(self, folder: Path, waiting: int = 8, *, command: Sequence[str] = COMMAND) -> None:
        self.folder = folder
        self._waiting = waiting
        self._command = tuple(command)
        self._ids = count(1)
        self._tasks: dict[int, Task] = {}
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="jobs", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def convert(
        self,
        source: str,
        name: str,
        *,
        precision: Storage = "fp16",
        loras: Sequence[tuple[str, float]] = (),
        without_t5: bool = False,
        token_merging: float | None = None,
    ) -> Job:
        """Convert a checkpoint into the model `name`; see `sfumato.convert`.

        loras: files with a strength each. Raises InvalidRequest where the request makes no sense, the name is
        taken or too many jobs wait; what only the conversion can find is the job's error.
        """
        options = convert_options(precision, loras, without_t5, token_merging)
        return self._add("convert", value("source", source), name, options)

    def optimize(
        self,
        model: str,
        name: str,
        recipe: str,
        *,
        samples: int | None = None,
        prompts: str | None = None,
    ) -> Job:
        """Apply a recipe to a model (a folder, or a name) and write the model `name`; see `sfumato.optimize`.

        Raises InvalidRequest as `convert` does.
        """
        options = optimize_options(recipe, samples, prompts)
        return self._add("optimize", value("model", model), name, options)

    def all(self) -> list[Job]:
        """Every job that is remembered, in the order in which they were given."""
        with self._changed:
            return [task.seen() for task in self._tasks.values()]

    def get(self, id: int) -> Job:
        """One job. Raises InvalidRequest where there is none, or no longer."""
        with self._changed:
            return self._find(id).seen()

    def stop(self, id: int) -> Job:
        """Take a job that waits out of the line, or have one that runs end and clean up.

        Returns at once, with the job as it stands then. Raises InvalidRequest as `get` does.
        """
        with self._changed:
            task = self._find(id)
            task.interrupt()
            return task.seen()

    def close(self) -> None:
        """Stop all jobs, and wait until they have ended. No further ones are taken."""
        with self._changed:
            self._closed = True
            for task in self._tasks.values():
                task.interrupt()
            self._changed.notify_all()
        self._thread.join(2 * GRACE)
        atexit.unregister(self.close)

    def _add(self, kind: Kind, source: str, name: str, options: list[str]) -> Job:
        with self._changed:
            out = self.folder / self._free(name)
            if self._closed:
                raise InvalidRequest("the server ends; no job is taken any more")
            if len(self._open()) > self._waiting:
                raise InvalidRequest(
                    f"{self._waiting} jobs wait already; let one of them end first, or stop one"
                )
            task = Task(
                id=next(self._ids),
                kind=kind,
                title=f"{kind} {shortened(source)} -> {name}",
                out=out,
                arguments=[kind, "--json", *options, "--", source, str(out)],
            )
            self._tasks[task.id] = task
            self._forget()
            self._changed.notify_all()
            return task.seen()

    def _free(self, name: str) -> str:
        """A name that a new model can have. Raises InvalidRequest."""
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise InvalidRequest(
                f"name {str(name)[:70]!r}: must be 1 to 64 letters, digits, '.', '_' or '-', the first one a "
                "letter or a digit"
            )
        if name in embedded_models():
            raise InvalidRequest(f"name {name!r}: a model that ships is called so; choose another name")
        writer = next((task for task in self._open() if task.out.name == name), None)
        if writer is not None:
            raise InvalidRequest(
                f"name {name!r}: job {writer.id} ({writer.title}) writes it already; choose another name"
            )
        out = self.folder / name
        if out.exists() or out.is_symlink():
            raise InvalidRequest(f"name {name!r}: {out} exists already; remove it or choose another name")
        return name

    def _open(self) -> list[Task]:
        return [task for task in self._tasks.values() if task.open]

    def _find(self, id: int) -> Task:
        if id not in self._tasks:
            raise InvalidRequest(f"job {str(id)[:20]}: is not there, or no longer")
        return self._tasks[id]

    def _forget(self) -> None:
        ended = [task.id for task in self._tasks.values() if not task.open]
        for id in ended[:-MOST_ENDED]:
            del self._tasks[id]

    def _work(self) -> None:
        """Run what waits, until closed."""
        while (task := self._next()) is not None:
            try:
                ended = run_child([*self._command, *task.arguments], self._hearing(task), task.stop)
                became = verdict(task, ended)
            except Exception as failure:  # no job may end the thread that runs all of them
                became = "failed", f"cannot be run ({failure})", None
            with self._changed:
                task.end(*became)

    def _next(self) -> Task | None:
        """The next job's turn; None at the end."""
        with self._changed:
            while not self._closed:
                for task in self._open():
                    task.begin()
                    return task
                self._changed.wait()
            return None

    def _hearing(self, task: Task) -> Callable[[str], None]:
        def hear(line: str) -> None:
            with self._changed:
                task.account.hear(line)

        return hear
